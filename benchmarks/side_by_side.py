"""Time and peak memory of programs, side by side in one run.

The rounds are interleaved, so that a busy machine slows all programs alike, and ratios are medians over the ratios of a
round: quote them, not the milliseconds. Peak memory is that of a fresh process for each program, from the moment the
inputs are there: the growth of the resident set, or what torch's allocator has given out (on a GPU always the latter).
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table

from rdrop.toolkit.environment import machine

Step = Callable[[], object]


def add_arguments(parser: argparse.ArgumentParser, rounds: int) -> None:
    """The arguments that all benchmarks of a loss have."""
    parser.add_argument("--rows", type=int, default=1024)
    parser.add_argument("--classes", type=int, default=32_000)
    parser.add_argument("--passes", type=int, default=2)
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "float16", "float64"])
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--rounds", type=int, default=rounds)
    parser.add_argument("--peak-of", help=argparse.SUPPRESS)


def compare(
    options: argparse.Namespace,
    title: str,
    make: Callable[[str], Step],
    names: Sequence[str],
    columns: Sequence[str],
    *,
    warm_up: Callable[[str], None],
    baselines: dict[str, Step] | None = None,
    restore: Step = lambda: None,
    resident: bool = True,
) -> None:
    """Print a table of all programs, or with `--peak-of` the peak of one.

    Args:
        options: What `add_arguments` has read.
        title: What was measured.
        make: Makes a step of the program of this name.
        names: The programs.
        columns: Programs or baselines whose time is 1.
        warm_up: Does what a program does once, on small inputs, so that it does not count.
        baselines: Steps that are no programs, of which the time alone is measured.
        restore: Called after each step, for what it has overwritten.
        resident: Whether peak memory on a CPU is that of the resident set: right for a few large tensors. What many
            small ones take is hidden there by memory that the process has kept; False counts what is allocated.
    """
    if options.peak_of:
        warm_up(options.peak_of)
        step = make(options.peak_of)
        peak = _peak_mib(options.device, step) if resident or options.device == "cuda" else _allocated_mib(step)
        print(json.dumps(peak))
        return
    times = _times(options, {**{name: make(name) for name in names}, **(baselines or {})}, restore)
    peaks = {}
    for name in names:
        command = [sys.executable, *sys.argv, "--peak-of", name]
        peaks[name] = float(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])
    print(f"{machine()}; torch {torch.__version__}, {torch.get_num_threads()} threads, {options.rounds} rounds")
    print(title)
    shown = [name for name in columns if name in times]
    table = Table(box=None)
    table.add_column("program")
    for heading in ("median ms", "spread ms", "peak MiB", *(f"to {name}" for name in shown)):
        table.add_column(heading, justify="right")
    for name, values in times.items():
        ratios = (statistics.median(a / b for a, b in zip(values, times[other], strict=True)) for other in shown)
        table.add_row(
            name,
            f"{statistics.median(values):.3f}",
            f"{min(values):.3f} .. {max(values):.3f}",
            f"{peaks[name]:.0f}" if name in peaks else "",
            *(f"{ratio:.3f}" for ratio in ratios),
        )
    Console(width=160, highlight=False).print(table)


def _times(options: argparse.Namespace, steps: dict[str, Step], restore: Step) -> dict[str, list[float]]:
    """Milliseconds of each round of each step."""
    for step in steps.values():
        step()
        restore()
    times: dict[str, list[float]] = {name: [] for name in steps}
    for _ in track(range(options.rounds), "rounds", console=Console(stderr=True)):
        for name, step in steps.items():
            _wait(options.device)
            start = time.perf_counter()
            step()
            _wait(options.device)
            times[name].append(1e3 * (time.perf_counter() - start))
            restore()
    return times


def _wait(device: str) -> None:
    """Wait for a GPU."""
    if device == "cuda":
        torch.cuda.synchronize()


def _peak_mib(device: str, step: Step) -> float:
    """Growth of memory during one step, in this process."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts here
    start = _resident_kib("VmRSS")
    step()
    return (_resident_kib("VmHWM") - start) / 2**10


def _allocated_mib(step: Step) -> float:
    """What the allocator of the CPU has given out beyond the start, at most, during the second step."""
    step()
    with torch.profiler.profile(profile_memory=True) as profile:
        step()
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / "trace.json"
        profile.export_chrome_trace(str(trace))
        events = json.loads(trace.read_text())["traceEvents"]
    return max(event["args"]["Total Allocated"] for event in events if event["name"] == "[memory]") / 2**20  # type: ignore[no-any-return]


def _resident_kib(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field))
