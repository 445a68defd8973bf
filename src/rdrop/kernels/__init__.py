"""Implementations of the objective behind one signature, and the choice between them.

Each implementation is a function `rows` that returns the task loss and the divergence of every position, as
`rdrop.kernels.reference.rows` documents it; masks, reductions and alpha are applied outside, once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from rdrop.kernels import fused, reference

Impl = Literal["auto", "reference", "fused"]


IMPLEMENTATIONS: dict[str, Callable[..., tuple[Tensor, Tensor]]] = {"reference": reference.rows, "fused": fused.rows}


class Choice(NamedTuple):
    """The implementation that was chosen, and why."""

    name: str
    reason: str


def choose(impl: str, labels: Tensor | None = None, class_weight: Tensor | None = None) -> Choice:
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
    if impl == "fused" and needs_autograd:
        raise ValueError(
            f"{' and '.join(needs_autograd)} require a gradient, and impl='fused' has one for the logits alone: use "
            "impl='reference' or 'auto', or detach them"
        )
    if impl != "auto":
        return Choice(impl, "asked for by name")
    if needs_autograd:
        return Choice("reference", f"{' and '.join(needs_autograd)} require a gradient, which only autograd has")
    if torch.compiler.is_compiling():
        return Choice("reference", "torch.compile fuses the formulas itself")
    return Choice("fused", "closed-form gradients in row chunks, no full-size temporary")


def available() -> dict[str, str]:
    """Name each implementation that can run here, with a line on what it is.

    >>> sorted(available())
    ['fused', 'reference']
    """
    return {
        "reference": "the formulas in plain torch, differentiated by autograd",
        "fused": "closed-form gradients in row chunks, on any device",
    }
