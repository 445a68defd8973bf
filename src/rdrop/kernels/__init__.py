"""Implementations of the objective behind one signature, and the choice between them.

Each implementation is a function `rows` that returns the task loss and the divergence of every position, as
`rdrop.kernels.reference.rows` documents it; masks, reductions and alpha are applied outside, once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from rdrop.kernels import fused, native, reference
from rdrop.options import Objective

Impl = Literal["auto", "reference", "fused", "native"]


IMPLEMENTATIONS: dict[str, Callable[..., tuple[Tensor, Tensor]]] = {
    "reference": reference.rows,
    "fused": fused.rows,
    "native": native.rows,
}


class Choice(NamedTuple):
    """The implementation that was chosen, and why."""

    name: str
    reason: str


def choose(
    impl: str,
    logits: Tensor | None = None,
    labels: Tensor | None = None,
    class_weight: Tensor | None = None,
    objective: Objective | None = None,
) -> Choice:
    """Choose the implementation for a call; a name that the caller gave is never replaced by another.

    Raises:
        ValueError: If the name is unknown, or if that implementation cannot serve the call.

    >>> choose("auto").name
    'fused'
    """
    if impl != "auto" and impl not in IMPLEMENTATIONS:
        raise ValueError(f"impl is {impl!r}; expected one of {', '.join(map(repr, get_args(Impl)))}")
    needs_autograd = [
        name
        for name, value in (("labels", labels), ("class_weight", class_weight))
        if value is not None and value.requires_grad
    ]
    if impl in ("fused", "native") and needs_autograd:
        raise ValueError(
            f"{' and '.join(needs_autograd)} require a gradient, and impl={impl!r} has one for the logits alone: use "
            "impl='reference' or 'auto', or detach them"
        )
    if impl == "native" and (reason := native.refusal(logits, objective)) is not None:
        raise ValueError(f"impl='native' cannot be used: {reason}. Use impl='auto' or 'fused'")
    if impl != "auto":
        return Choice(impl, "asked for by name")
    if needs_autograd:
        return Choice("reference", f"{' and '.join(needs_autograd)} require a gradient, which only autograd has")
    if torch.compiler.is_compiling():
        return Choice("reference", "torch.compile fuses the formulas itself")
    return Choice("fused", "closed-form gradients in row chunks, no full-size temporary")


def available() -> dict[str, str]:
    """Name each implementation, with a line on what it is, or why it cannot run here.

    >>> sorted(available())[:2]
    ['fused', 'native']
    """
    return {
        "reference": "the formulas in plain torch, differentiated by autograd",
        "fused": "closed-form gradients in row chunks, on any device",
        "native": native.refusal() or f"rows in C++ on the CPU, with {native.INSTRUCTION_SET}",
    }
