"""Kernels as operators of torch, which `torch.compile` takes into its graphs without a look inside.

The compiler needs to know the shapes of what an operator returns, and the operator that is its gradient. Memory is the
compiler's business there, so that gradients have their own.
"""

# Annotations are not postponed here: torch reads them to find out what an operator takes.

from typing import Any, Optional

import torch
from torch import Tensor

from rdrop.kernels.differentiable import Kernel
from rdrop.kernels.inputs import Inputs
from rdrop.options import Objective


def rows(
    name: str,
    logits: Tensor,
    labels: Optional[Tensor],  # noqa: UP045
    keep: Optional[Tensor],  # noqa: UP045
    class_weight: Optional[Tensor],  # noqa: UP045
    objective: Objective,
) -> tuple[Tensor, Tensor]:
    """Task loss and divergence of each position, as `rdrop.kernels.reference.rows` defines them."""
    options = objective.kind, objective.divergence, objective.stop_gradient or "", objective.label_smoothing
    task, distance, _ = _measure(name, logits, labels, keep, class_weight, *options)
    return task, distance


def _find(name: str, kind: str) -> Kernel:
    """The kernel of this name for a kind of objective."""
    from rdrop.kernels import kernel

    return kernel(name, Objective(kind))  # type: ignore[arg-type]


@torch.library.custom_op("rdrop::measure", mutates_args=())
def _measure(
    name: str,
    logits: Tensor,
    labels: Optional[Tensor],  # noqa: UP045
    keep: Optional[Tensor],  # noqa: UP045
    class_weight: Optional[Tensor],  # noqa: UP045
    kind: str,
    divergence: str,
    stop_gradient: str,
    label_smoothing: float,
) -> tuple[Tensor, Tensor, Tensor]:
    objective = Objective(kind, divergence, stop_gradient or None, label_smoothing)  # type: ignore[arg-type]
    return _find(name, kind).measure(Inputs(logits, labels, keep, class_weight, objective))


@_measure.register_fake
def _(
    name: str,
    logits: Tensor,
    labels: Optional[Tensor],  # noqa: ARG001, UP045
    keep: Optional[Tensor],  # noqa: ARG001, UP045
    class_weight: Optional[Tensor],  # noqa: ARG001, UP045
    kind: str,
    divergence: str,  # noqa: ARG001
    stop_gradient: str,  # noqa: ARG001
    label_smoothing: float,  # noqa: ARG001
) -> tuple[Tensor, Tensor, Tensor]:
    positions = logits.shape[1:-1] if kind == "categorical" else logits.shape[1:]
    dtype = torch.promote_types(logits.dtype, torch.float32)
    shapes = positions, positions, (*positions, _find(name, kind).kept_per_position(len(logits)))
    task, distance, kept = (logits.new_empty(shape, dtype=dtype) for shape in shapes)
    return task, distance, kept


@torch.library.custom_op("rdrop::write_gradient", mutates_args=())
def _write_gradient(
    name: str,
    logits: Tensor,
    labels: Optional[Tensor],  # noqa: UP045
    keep: Optional[Tensor],  # noqa: UP045
    class_weight: Optional[Tensor],  # noqa: UP045
    kept: Tensor,
    task: Tensor,
    distance: Tensor,
    kind: str,
    divergence: str,
    stop_gradient: str,
    label_smoothing: float,
) -> Tensor:
    objective = Objective(kind, divergence, stop_gradient or None, label_smoothing)  # type: ignore[arg-type]
    inputs = Inputs(logits, labels, keep, class_weight, objective)
    gradient = torch.empty_like(logits, memory_format=torch.contiguous_format)
    _find(name, kind).write_gradient(inputs, kept, task, distance, gradient)
    return gradient


@_write_gradient.register_fake
def _(name: str, logits: Tensor, *others: Any) -> Tensor:  # noqa: ARG001
    return torch.empty_like(logits, memory_format=torch.contiguous_format)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.name, *tensors = inputs[:5]
    ctx.options = inputs[5:]
    ctx.save_for_backward(*tensors, output[-1])


def _backward(ctx: Any, task: Tensor, distance: Tensor, _: Any) -> tuple[Any, ...]:
    logits, labels, keep, class_weight, kept = ctx.saved_tensors
    gradient = _write_gradient(ctx.name, logits, labels, keep, class_weight, kept, task, distance, *ctx.options)
    return None, gradient, *[None] * 7


_measure.register_autograd(_backward, setup_context=_setup_context)
