"""A kernel as autograd sees it: the terms in forward, and the gradient of the logits in forward or in backward.

Where every row will get the same gradient up to a factor, as of a mean or a sum, a kernel writes that of the logits in
forward already, while a row is in the cache. Backward then only checks that the rows' gradients came as foretold.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor

from rdrop.kernels import memory, reference
from rdrop.kernels.inputs import Inputs
from rdrop.options import Objective


class Kernel(Protocol):
    """Forward reads the logits; backward reads them again and writes the gradient."""

    def kept_per_position(self, passes: int) -> int:
        """How many numbers `measure` keeps of a position for `write_gradient`."""

    def measure(self, inputs: Inputs) -> tuple[Tensor, Tensor, Tensor]:
        """Task loss and divergence of each position, and what the gradient needs to know of it."""

    def write_gradient(self, inputs: Inputs, kept: Tensor, task: Tensor, distance: Tensor, out: Tensor) -> None:
        """The gradient of the logits into `out`, which they may be, given what was kept and that of both terms."""


class OneWalk(Kernel, Protocol):
    """A kernel that can do it all while a row is in the cache."""

    def measure_and_write(self, inputs: Inputs, foretold: tuple[float, float], out: Tensor) -> tuple[Tensor, Tensor]:
        """Both terms of each position, and the gradient of the logits into `out`, for these gradients of the terms."""


def rows(
    kernel: Kernel,
    logits: Tensor,
    labels: Tensor | None,
    keep: Tensor | None,
    class_weight: Tensor | None,
    objective: Objective,
    *,
    foretold: tuple[float, float] | None = None,
    inplace: bool = False,
) -> tuple[Tensor, Tensor]:
    """Task loss and divergence of each position, as `rdrop.kernels.reference.rows` defines them.

    `foretold` are the gradients of both terms that every row will get in backward, if they are known up to a factor;
    `inplace` allows the gradient of the logits to take their place.
    """
    # float16 could underflow before a loss scale multiplies it.
    one_walk = logits.dtype != torch.float16 and hasattr(kernel, "measure_and_write")
    differentiable = logits.requires_grad and torch.is_grad_enabled()
    prepared = _Prepared(*foretold) if foretold is not None and one_walk and differentiable else None
    inplace = inplace and memory.can_be_overwritten(logits)
    function = _RowsUnderTransforms if _transforms_are_active() else _Rows
    task, distance, _ = function.apply(kernel, logits, labels, keep, class_weight, objective, prepared, inplace)
    if prepared is not None and inplace:
        torch.autograd.graph.increment_version(logits)
    return task, distance


class _Prepared:
    """A gradient of the logits that is there before backward, and the row gradients that it is for."""

    def __init__(self, task: float, distance: float) -> None:
        self.foretold = task, distance
        self.gradient: Tensor | None = None

    def take(self, *came: Tensor) -> Tensor | None:
        """Hand out the gradient, once, if the row gradients `came` as foretold up to a common factor."""
        gradient, self.gradient = self.gradient, None
        if gradient is None or came[0].numel() == 0:
            return gradient
        ranges = [_range(rows) for rows in came]
        factor = next((ends[0] / f for ends, f in zip(ranges, self.foretold, strict=True) if f), 1.0)
        near = 8 * torch.finfo(came[0].dtype).eps * abs(factor)
        if not all(
            abs(end - factor * f) <= near * f for ends, f in zip(ranges, self.foretold, strict=True) for end in ends
        ):
            return None
        return gradient if abs(factor - 1) <= near else gradient.mul_(factor)


def _range(values: Tensor) -> tuple[float, float]:
    """The smallest and the largest; of a sum's gradient, which is one number expanded, without a look at all."""
    if not any(values.stride()):
        one = values[(0,) * values.dim()].item()
        return one, one
    low, high = values.aminmax()
    return low.item(), high.item()


class _Rows(torch.autograd.Function):
    """Task loss, divergence and what the kernel kept."""

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
        output = _forward(*arguments)
        _keep_for_backward(ctx, arguments, output)
        return output

    @staticmethod
    def backward(ctx: Any, task: Tensor, distance: Tensor, _: Any) -> tuple[Tensor | None, ...]:
        return None, _gradient(ctx, task, distance), *[None] * 6


class _RowsUnderTransforms(torch.autograd.Function):
    """The same in the form that `torch.func` asks for, which costs tens of microseconds more."""

    forward = staticmethod(lambda *arguments: _forward(*arguments))
    setup_context = staticmethod(lambda ctx, inputs, output: _keep_for_backward(ctx, inputs, output))
    backward = _Rows.backward


def _transforms_are_active() -> bool:
    """Whether this is a call inside of `torch.func`, as `torch.autograd.Function` finds out."""
    return getattr(torch._C, "_are_functorch_transforms_active", lambda: True)()


def _forward(
    kernel: OneWalk,
    logits: Tensor,
    labels: Tensor | None,
    keep: Tensor | None,
    class_weight: Tensor | None,
    objective: Objective,
    prepared: _Prepared | None,
    inplace: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    inputs = Inputs(logits, labels, keep, class_weight, objective)
    if prepared is None:
        return kernel.measure(inputs)
    prepared.gradient = logits.detach() if inplace else memory.like(logits)
    return *kernel.measure_and_write(inputs, prepared.foretold, prepared.gradient), logits.new_empty(0)


def _keep_for_backward(ctx: Any, arguments: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.kernel, *tensors, ctx.objective, ctx.prepared, ctx.inplace = arguments
    kept = output[-1]
    ctx.mark_non_differentiable(kept)
    if ctx.prepared is None or not ctx.inplace:
        ctx.save_for_backward(*tensors, kept)


def _gradient(ctx: Any, task: Tensor, distance: Tensor) -> Tensor:
    """That of the logits: the one that was prepared, or a new one, or one that has a gradient itself."""
    prepared: _Prepared | None = ctx.prepared
    create_graph = torch.is_grad_enabled()
    if not create_graph and prepared is not None and (gradient := prepared.take(task, distance)) is not None:
        return gradient
    if ctx.inplace and (create_graph or prepared is not None):
        raise RuntimeError(
            "inplace=True: the logits were overwritten by the gradient of `loss`, which can be had once, times any "
            "factor. Backward came a second time, or through another combination of task_loss and divergence, or with "
            "create_graph=True: use inplace=False for that"
        )
    logits, labels, keep, class_weight, kept = ctx.saved_tensors
    inputs = Inputs(logits, labels, keep, class_weight, ctx.objective)
    if create_graph:
        return reference.gradient(*inputs, task, distance)
    if prepared is not None:
        kept = ctx.kernel.measure(inputs)[-1]
    gradient = logits.detach() if ctx.inplace else memory.like(logits)
    ctx.kernel.write_gradient(inputs, kept, task, distance, gradient)
    if ctx.inplace:
        torch.autograd.graph.increment_version(logits)
    return gradient
