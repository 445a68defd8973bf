"""Implementations of the objective behind one signature, and the choice between them.

Each implementation is a function `rows` that returns the task loss and the divergence of every position, as
`rdrop.kernels.reference.rows` documents it; masks, reductions and alpha are applied outside, once.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable
from functools import partial
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor

from rdrop.kernels import differentiable, fused, native, operators, reference
from rdrop.options import Objective

Impl = Literal["auto", "reference", "fused", "native", "triton"]


def kernel(name: str, objective: Objective) -> differentiable.Kernel:
    """The kernel of this name; those in Triton are imported when they are first asked for."""
    if name == "triton":
        from rdrop.kernels import triton_elements, triton_rows

        return triton_rows if objective.kind == "categorical" else triton_elements
    return native if name == "native" else fused


def _rows(
    name: str,
    logits: Tensor,
    labels: Tensor | None,
    keep: Tensor | None,
    class_weight: Tensor | None,
    objective: Objective,
    **options: Any,
) -> tuple[Tensor, Tensor]:
    """The rows of a kernel."""
    if torch.compiler.is_compiling():
        return operators.rows(name, logits, labels, keep, class_weight, objective)
    inputs = logits, labels, keep, class_weight, objective
    return differentiable.rows(kernel(name, objective), *inputs, **options)


IMPLEMENTATIONS: dict[str, Callable[..., tuple[Tensor, Tensor]]] = {
    "reference": reference.rows,
    "fused": partial(_rows, "fused"),
    "native": partial(_rows, "native"),
    "triton": partial(_rows, "triton"),
}


_HAS_TRITON = importlib.util.find_spec("triton") is not None


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

    Examples:
        >>> choose("auto", torch.zeros(2, 8, 10, dtype=torch.float64)).name
        'fused'
    """
    if impl != "auto" and impl not in IMPLEMENTATIONS:
        raise ValueError(f"impl is {impl!r}; expected one of {', '.join(map(repr, get_args(Impl)))}")
    needs_autograd = [
        name
        for name, value in (("labels", labels), ("class_weight", class_weight))
        if value is not None and value.requires_grad
    ]
    if impl not in ("auto", "reference") and needs_autograd:
        raise ValueError(
            f"{' and '.join(needs_autograd)} require a gradient, and impl={impl!r} has one for the logits alone: use "
            "impl='reference' or 'auto', or detach them"
        )
    refusal = {"native": partial(native.refusal, logits, objective), "triton": partial(_triton_refusal, logits)}
    if impl in refusal and (reason := refusal[impl]()) is not None:
        raise ValueError(f"impl={impl!r} cannot be used: {reason}. Use impl='auto' or 'fused'")
    if impl != "auto":
        return Choice(impl, "asked for by name")
    if needs_autograd:
        return Choice("reference", f"{' and '.join(needs_autograd)} require a gradient, which only autograd has")
    if (reason := native.refusal(logits, objective)) is None:
        return Choice("native", "the fastest on a CPU")
    if torch.compiler.is_compiling():
        return Choice("reference", "torch.compile fuses the formulas itself")
    return Choice(
        "fused", f"closed-form gradients in row chunks, no full-size temporary; native cannot serve: {reason}"
    )


def available() -> dict[str, str]:
    """Name each implementation, with a line on what it is, or why it cannot run here.

    Examples:
        >>> sorted(available())[:2]
        ['fused', 'native']
    """
    return {
        "reference": "the formulas in plain torch, differentiated by autograd",
        "fused": "closed-form gradients in row chunks, on any device",
        "native": native.refusal() or f"rows in C++ on the CPU, with {native.INSTRUCTION_SET}",
        "triton": _triton_refusal() or ("rows in Triton" + (", interpreted" if _interpreted() else " on the GPU")),
    }


def _triton_refusal(logits: Tensor | None = None) -> str | None:
    """Why the kernel in Triton cannot serve a call, or without one, why it cannot run here at all; None if it can."""
    if not _HAS_TRITON:
        return "the package triton is not installed"
    if logits is not None and logits.dtype == torch.float64:
        return "the logits are torch.float64, and its sums run in float32"
    if not _interpreted() and not (torch.cuda.is_available() if logits is None else logits.is_cuda):
        where = "there is no CUDA device" if logits is None else f"the logits are on {logits.device}"
        return f"{where}, and it runs on CUDA"
    return None


def _interpreted() -> bool:
    """Whether Triton's programs run on the CPU, in its interpreter."""
    return os.environ.get("TRITON_INTERPRET") == "1"
