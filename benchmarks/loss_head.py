"""Time and peak memory of the loss head, forward and backward, side by side in one run.

    python benchmarks/loss_head.py [--rows 1024] [--classes 32000] [--passes 2] [--dtype float32] [--device cpu]

Compared are the snippet that most people paste (`tests/plain_programs.py`), `torch.compile` of it, this package's
implementations, with gradients of their own and in place, and two copies of the logits: into fresh memory, and into
memory that is in use, the least that reading logits and writing a gradient can cost. The rounds are interleaved, so
that a busy machine slows all programs alike; quote the ratios, which are of one round, not the milliseconds. Peak
memory is that of a fresh process for each program: the growth of the resident set from the moment the inputs are there
(on a GPU, the allocator's peak).
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from plain_programs import snippet
from rdrop import rdrop_loss
from rdrop.kernels import choose
from rdrop.toolkit.environment import machine

PROGRAMS = {
    "snippet": None,
    "compiled snippet": None,
    "fused": {"impl": "fused"},
    "native": {"impl": "native"},
    "native in place": {"impl": "native", "inplace": True},
    "triton": {"impl": "triton"},
    "triton in place": {"impl": "triton", "inplace": True},
    "reference": {"impl": "reference"},
}
"""Options of `rdrop_loss`, or none for a program of others."""


def program(name: str, logits: Tensor, labels: Tensor) -> Callable[[], None]:
    """One step of the named program: fresh leaves, forward, backward into fresh gradients."""
    rows = logits.shape[1]
    if "snippet" in name:
        function = torch.compile(snippet) if "compiled" in name else snippet

        def step() -> None:
            # Two separate leaves: the best case for the snippet, whose gradients then need not be stacked.
            first, second = (z.detach().requires_grad_() for z in logits)
            function(first, second, labels, 1.0 / rows).backward()
    else:

        def step() -> None:
            rdrop_loss(logits.detach().requires_grad_(), labels, **PROGRAMS[name]).loss.backward()

    return step


def inputs(options: argparse.Namespace) -> tuple[Tensor, Tensor]:
    """Logits `(M, N, C)` and class ids `(N,)`."""
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(options.passes, options.rows, options.classes, generator=generator)
    labels = torch.randint(options.classes, (options.rows,), generator=generator)
    return logits.to(options.device, getattr(torch, options.dtype)), labels.to(options.device)


def wait(device: str) -> None:
    """Wait for a GPU."""
    if device == "cuda":
        torch.cuda.synchronize()


def measure_times(options: argparse.Namespace) -> dict[str, list[float]]:
    """Milliseconds of each round of each program."""
    logits, labels = inputs(options)
    values, used = logits.clone(), torch.empty_like(logits)
    steps = {name: program(name, logits, labels) for name in PROGRAMS if _runs(name, logits)}
    steps["copy, fresh memory"] = lambda: logits.clone()
    steps["copy, used memory"] = lambda: used.copy_(logits)
    for step in steps.values():
        step()
        logits.copy_(values)
    times: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(options.rounds):
        for name, step in steps.items():
            wait(options.device)
            start = time.perf_counter()
            step()
            wait(options.device)
            times[name].append(1e3 * (time.perf_counter() - start))
            logits.copy_(values)  # where they were overwritten
        print(f"\rround {turn + 1}/{options.rounds}", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    return times


def _runs(name: str, logits: Tensor) -> bool:
    """Whether a program can do this: the snippet knows two passes, a kernel its device."""
    if (settings := PROGRAMS[name]) is None:
        return len(logits) == 2
    try:
        choose(settings["impl"], logits)
    except ValueError:
        return False
    return True


def peak_mib(options: argparse.Namespace, name: str) -> float:
    """Growth of memory during one step, in this process."""
    logits, labels = inputs(options)
    tiny = program(name, logits[:, :2, :8].contiguous(), labels[:2] % 8)
    tiny()
    if name == "compiled snippet":  # so that compiling does not count
        program(name, logits[:, :8].contiguous(), labels[:8])()
    if options.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        program(name, logits, labels)()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts here
    before = _resident_kib("VmRSS")
    program(name, logits, labels)()
    return (_resident_kib("VmHWM") - before) / 2**10


def _resident_kib(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field))


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1024)
    parser.add_argument("--classes", type=int, default=32_000)
    parser.add_argument("--passes", type=int, default=2)
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "float16", "float64"])
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--peak-of", choices=list(PROGRAMS), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.peak_of:
        print(json.dumps(peak_mib(options, options.peak_of)))
        return
    times = measure_times(options)
    peaks = {}
    for name in times:
        if name in PROGRAMS:
            command = [sys.executable, __file__, *sys.argv[1:], "--peak-of", name]
            peaks[name] = float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    size = 2**-20 * options.passes * options.rows * options.classes * getattr(torch, options.dtype).itemsize
    print(f"{machine()}; torch {torch.__version__}, {torch.get_num_threads()} threads")
    print(f"M = {options.passes}, N = {options.rows}, C = {options.classes}, {options.dtype}: logits {size:.0f} MiB")
    columns = ["snippet", "compiled snippet", "copy, fresh memory", "copy, used memory"]
    columns = [name for name in columns if name in times]
    print(f"{'program':20}{'median ms':>10}{'spread ms':>18}{'peak MiB':>10}", "time as a ratio to", sep="  ")
    print(" " * 58, *(f"{name:>20}" for name in columns))
    for name, values in times.items():
        spread = f"{min(values):.3f} .. {max(values):.3f}"
        peak = f"{peaks[name]:10.0f}" if name in peaks else 10 * " "
        # Ratios of the same round: what slowed one slowed the other.
        ratios = (statistics.median(a / b for a, b in zip(values, times[other], strict=True)) for other in columns)
        print(f"{name:20}{statistics.median(values):10.3f}{spread:>18}{peak}", *(f"{ratio:20.3f}" for ratio in ratios))


if __name__ == "__main__":
    main()
