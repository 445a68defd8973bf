"""Time and peak memory of the loss head, forward and backward, side by side in one run.

    python benchmarks/loss_head.py [--rows 1024] [--classes 32000] [--passes 2] [--dtype float32] [--device cpu]

Compared are the snippet that most people paste (`tests/plain_programs.py`), `torch.compile` of it, this package's
implementations, with gradients of their own and in place, and two copies of the logits: into fresh memory, and into
memory that is in use, the least that reading logits and writing a gradient can cost. `side_by_side.py` says how it is
measured.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from plain_programs import snippet
from rdrop import rdrop_loss
from rdrop.kernels import choose
from side_by_side import add_arguments, compare

PROGRAMS: dict[str, dict[str, Any] | None] = {
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
    rows, settings = logits.shape[1], PROGRAMS[name]
    function: Callable[..., Tensor] = torch.compile(snippet) if "compiled" in name else snippet

    def others() -> None:
        # Two separate leaves: the best case for the snippet, whose gradients then need not be stacked.
        first, second = (z.detach().requires_grad_() for z in logits)
        function(first, second, labels, 1.0 / rows).backward()  # type: ignore[no-untyped-call]

    def ours() -> None:
        rdrop_loss(logits.detach().requires_grad_(), labels, **settings or {}).loss.backward()  # type: ignore[no-untyped-call]

    return others if settings is None else ours


def inputs(options: argparse.Namespace) -> tuple[Tensor, Tensor]:
    """Logits `(M, N, C)` and class ids `(N,)`."""
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(options.passes, options.rows, options.classes, generator=generator)
    labels = torch.randint(options.classes, (options.rows,), generator=generator)
    return logits.to(options.device, getattr(torch, options.dtype)), labels.to(options.device)


def runs(name: str, logits: Tensor) -> bool:
    """Whether a program can do this: the snippet knows two passes, a kernel its device."""
    if (settings := PROGRAMS[name]) is None:
        return len(logits) == 2
    try:
        choose(settings["impl"], logits)
    except ValueError:
        return False
    return True


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser, rounds=15)
    options = parser.parse_args()
    logits, labels = inputs(options)

    def warm_up(name: str) -> None:
        program(name, logits[:, :2, :8].contiguous(), labels[:2] % 8)()
        if name == "compiled snippet":  # so that compiling does not count
            program(name, logits[:, :8].contiguous(), labels[:8])()

    baselines, restore = {}, lambda: None
    if not options.peak_of:
        values, used = logits.clone(), torch.empty_like(logits)
        baselines = {"copy, fresh memory": lambda: logits.clone(), "copy, used memory": lambda: used.copy_(logits)}
        restore = lambda: logits.copy_(values)  # noqa: E731
    size = logits.nbytes / 2**20
    compare(
        options,
        f"M = {options.passes}, N = {options.rows}, C = {options.classes}, {options.dtype}: logits {size:.0f} MiB",
        lambda name: program(name, logits, labels),
        [name for name in PROGRAMS if runs(name, logits)],
        ["snippet", "compiled snippet", *baselines],
        warm_up=warm_up,
        baselines=baselines,
        restore=restore,
    )


if __name__ == "__main__":
    main()
