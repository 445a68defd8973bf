"""Time and peak memory of the linear head with the loss, forward and backward, side by side in one run.

    python benchmarks/linear_head.py [--rows 1024] [--classes 32000] [--width 512] [--dtype float32] [--device cpu]

Compared are plain programs that make all logits (with the snippet that most people paste, and with this package's loss
on them), `rdrop.linear_rdrop_loss`, and two heads without a divergence on the same `M * N` rows, for what the products
alone cost: `torch.nn.functional.linear_cross_entropy` of newer versions of torch, and on CUDA Liger's fused linear
cross-entropy, where they are installed. `side_by_side.py` says how it is measured.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from plain_programs import snippet
from rdrop import linear_rdrop_loss, rdrop_loss
from side_by_side import add_arguments, compare

PROGRAMS = ("plain, snippet", "plain, rdrop_loss", "linear_rdrop_loss", "linear_cross_entropy", "liger")


def program(name: str, hidden: Tensor, weight: Tensor, labels: Tensor) -> Callable[[], None]:
    """One step of the named program: fresh leaves, forward, backward into fresh gradients."""
    rows = hidden.shape[1]
    twice = labels.repeat(len(hidden))

    def step() -> None:
        h, w = (x.detach().requires_grad_() for x in (hidden, weight))
        if name == "plain, snippet":
            logits = F.linear(h, w)
            loss = snippet(logits[0], logits[1], labels, 1.0 / rows)
        elif name == "plain, rdrop_loss":
            loss = rdrop_loss(F.linear(h, w), labels).loss
        elif name == "linear_rdrop_loss":
            loss = linear_rdrop_loss(h, w, labels).loss
        elif name == "linear_cross_entropy":
            loss = F.linear_cross_entropy(h.flatten(0, 1), w, twice)
        else:
            from liger_kernel.ops.fused_linear_cross_entropy import LigerFusedLinearCrossEntropyFunction

            loss = LigerFusedLinearCrossEntropyFunction.apply(h.flatten(0, 1), w, twice)[0]
        loss.backward()

    return step


def runs(name: str, options: argparse.Namespace) -> bool:
    """Whether a program can run here."""
    if "snippet" in name:
        return options.passes == 2
    if name == "linear_cross_entropy":
        return hasattr(F, "linear_cross_entropy")
    return name != "liger" or (options.device == "cuda" and importlib.util.find_spec("liger_kernel") is not None)


def inputs(options: argparse.Namespace) -> tuple[Tensor, Tensor, Tensor]:
    """Hidden states `(M, N, D)`, weight `(C, D)` and class ids `(N,)`."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(options.passes, options.rows, options.width, generator=generator)
    weight = torch.randn(options.classes, options.width, generator=generator) / options.width**0.5
    labels = torch.randint(options.classes, (options.rows,), generator=generator)
    dtype = getattr(torch, options.dtype)
    return hidden.to(options.device, dtype), weight.to(options.device, dtype), labels.to(options.device)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=512, help="D, the size of a hidden state")
    parser.add_argument("--programs", help="names of programs, separated by semicolons (default: all that run here)")
    add_arguments(parser, rounds=7)
    options = parser.parse_args()
    hidden, weight, labels = inputs(options)
    names = options.programs.split(";") if options.programs else [name for name in PROGRAMS if runs(name, options)]
    size = len(hidden) * options.rows * options.classes * hidden.element_size() / 2**20
    compare(
        options,
        f"M = {options.passes}, N = {options.rows}, C = {options.classes}, D = {options.width}, {options.dtype}: "
        f"logits {size:.0f} MiB, weight {weight.nbytes / 2**20:.0f} MiB",
        lambda name: program(name, hidden, weight, labels),
        names,
        PROGRAMS,
        warm_up=lambda name: program(name, hidden[:, :2], weight[:8], labels[:2] % 8)(),
    )


if __name__ == "__main__":
    main()
