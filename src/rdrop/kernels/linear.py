"""A linear head and the objective in one: logits exist for a chunk of positions at a time.

    logits = softcap(logit_scale * (hidden @ weight.T + bias)),    softcap(z) = c tanh(z / c)

For each chunk: the product, a kernel that puts the gradient in the place of the logits, and the products that make of
it the gradients of hidden states, weight and bias. The latter two are summed up in float32 (float64 for such weights),
always in the same order. All of it happens in forward if backward will come through the loss alone, as a mean or a sum;
what else may come is computed in backward, where logits are made a second time.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from rdrop.kernels import reference
from rdrop.kernels.differentiable import Kernel
from rdrop.kernels.inputs import Inputs
from rdrop.options import Objective

LEAST_ROWS = 256
"""Rows of logits (of all passes) in a chunk, below which the products become slow."""
CLASSES_AT_ONCE = 1 << 14
"""Of a weight in half precision, the share whose gradient is made before it is added up in float32."""


class Head(NamedTuple):
    """What lies between the hidden states and the terms; positions are one axis."""

    kernel: Kernel
    objective: Objective
    labels: Tensor | None
    keep: Tensor | None
    class_weight: Tensor | None
    alpha: float | Tensor
    logit_scale: float
    softcap: float | None
    dtype: torch.dtype
    """That of the products."""


def logits_of(hidden: Tensor, weight: Tensor, bias: Tensor | None, logit_scale: float, softcap: float | None) -> Tensor:
    """All logits at once, in a form that autograd can differentiate."""
    logits = F.linear(hidden, weight, bias)
    if logit_scale != 1:
        logits = logits * logit_scale
    return logits if softcap is None else softcap * torch.tanh(logits / softcap)


def rows(
    head: Head, hidden: Tensor, weight: Tensor, bias: Tensor | None, foretold: float | Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Loss, task loss and divergence of each position.

    Args:
        head: What is computed of the logits.
        hidden: `(M, N, D)`.
        weight: `(C, D)`.
        bias: `(C,)` or None.
        foretold: The gradient of the loss that every position will get in backward, up to a factor, if backward will
            come through the loss alone; a number on a CPU.
    """
    if not torch.is_grad_enabled() or head.dtype == torch.float16:
        foretold = None  # nothing to prepare, or what could underflow before a loss scale multiplies it
    return _Rows.apply(head, hidden, weight, bias, foretold)  # type: ignore[no-any-return]


class _Rows(torch.autograd.Function):
    """Loss, task loss and divergence."""

    @staticmethod
    def forward(
        ctx: Any, head: Head, hidden: Tensor, weight: Tensor, bias: Tensor | None, foretold: float | Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        ctx.head, ctx.foretold, ctx.prepared, rates = head, foretold, None, None
        if foretold is not None and any(ctx.needs_input_grad):
            ctx.prepared = _Gradients.of(hidden, weight, bias, ctx.needs_input_grad[1:4])
            rates = foretold, foretold * head.alpha
        task, distance = _walk(head, hidden, weight, bias, rates, ctx.prepared)
        ctx.save_for_backward(hidden, weight, bias)
        ctx.set_materialize_grads(False)
        return task + head.alpha * distance, task, distance

    @staticmethod
    def backward(ctx: Any, loss: Tensor | None, task: Tensor | None, distance: Tensor | None) -> tuple[Any, ...]:
        hidden, weight, bias = ctx.saved_tensors
        head, wanted = ctx.head, ctx.needs_input_grad[1:4]
        prepared, ctx.prepared = ctx.prepared, None
        if torch.is_grad_enabled():  # create_graph=True: that is autograd's business
            return None, *_differentiable(head, hidden, weight, bias, wanted, (loss, task, distance)), None
        if prepared is not None and loss is not None and task is None and distance is None and _is_one_number(loss):
            return None, *prepared.times(loss[(0,) * loss.dim()] / ctx.foretold), None
        gradients = _Gradients.of(hidden, weight, bias, wanted)
        rates = _added(loss, task), _added(None if loss is None else head.alpha * loss, distance)
        _walk(head, hidden, weight, bias, rates, gradients)
        return None, *gradients, None


def _is_one_number(values: Tensor) -> bool:
    """Whether all values are the same one, expanded, as in the gradient of a sum."""
    return values.numel() == 1 or (values.numel() > 1 and not any(values.stride()))


class _Gradients(NamedTuple):
    """Those of hidden states, weight and bias, or None where they are not asked for."""

    hidden: Tensor | None
    weight: Tensor | None
    bias: Tensor | None

    @classmethod
    def of(cls, hidden: Tensor, weight: Tensor, bias: Tensor | None, wanted: tuple[bool, ...]) -> _Gradients:
        """Zeros; those that are summed up in float32 at least."""
        sums = [
            None if x is None or not asked else torch.zeros_like(x, dtype=torch.promote_types(x.dtype, torch.float32))
            for x, asked in zip((weight, bias), wanted[1:], strict=True)
        ]
        return cls(torch.zeros_like(hidden) if wanted[0] else None, *sums)

    def times(self, factor: Tensor) -> _Gradients:
        """These gradients times a number. On a CPU a look at it can save the work, elsewhere it would cost a wait."""
        if factor.device.type == "cpu" and abs(factor.item() - 1) <= 8 * torch.finfo(factor.dtype).eps:
            return self
        return _Gradients(*(x if x is None else x.mul_(factor) for x in self))


def _walk(
    head: Head,
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    rates: tuple[Any, Any] | None,
    gradients: _Gradients | None,
) -> tuple[Tensor, Tensor]:
    """Both terms of each position; with their gradients `rates`, those of all that leads to them are added up."""
    dtype = torch.promote_types(head.dtype, torch.float32)
    positions = hidden.shape[1:2] if head.objective.kind == "categorical" else (hidden.shape[1], len(weight))
    task, distance = (hidden.new_zeros(positions, dtype=dtype) for _ in range(2))
    weight, bias = weight.to(head.dtype), None if bias is None else bias.to(head.dtype)
    memory: dict[str, Tensor] = {}
    for at in _chunks(head, hidden, len(weight)):
        h = hidden[:, at].to(head.dtype)
        z = _product(h.flatten(0, 1), weight, bias, head.logit_scale, memory)
        slope = None
        if head.softcap is not None:
            z.div_(head.softcap).tanh_()
            slope = None if gradients is None else 1 - z.square()
            z.mul_(head.softcap)
        logits = z.view(*h.shape[:2], -1)
        labels, keep = (x if x is None else x[at] for x in (head.labels, head.keep))
        inputs = Inputs(logits, labels, keep, head.class_weight, head.objective)
        chosen = None if rates is None else tuple(x[at] if isinstance(x, Tensor) and x.dim() else x for x in rates)
        task[at], distance[at] = _terms(head.kernel, inputs, chosen)
        if gradients is not None:
            if slope is not None:
                z.mul_(slope)
            _add_gradients(gradients, at, h, z, weight, head.logit_scale)
    return task, distance


def _chunks(head: Head, hidden: Tensor, classes: int) -> Iterator[Any]:
    """Positions of each chunk: about as many logits as there are numbers in the hidden states.

    On a CPU positions that do not count are left out; elsewhere to find them would cost a wait.
    """
    M, N, D = hidden.shape
    size = max(1, max(LEAST_ROWS, M * N * D // max(classes, 1)) // max(M, 1))
    keep = head.keep
    if keep is not None and keep.device.type == "cpu" and keep.dim() == 1:
        counted = keep.nonzero().squeeze(-1)
        yield from (counted[start : start + size] for start in range(0, len(counted), size))
    else:
        yield from (slice(start, start + size) for start in range(0, N, size))


def _product(h: Tensor, weight: Tensor, bias: Tensor | None, scale: float, memory: dict[str, Tensor]) -> Tensor:
    """The logits of a chunk before the cap, in memory that all chunks share."""
    if "z" not in memory:  # the first chunk is the largest
        memory["z"] = h.new_empty(len(h), len(weight))
    z = memory["z"][: len(h)]
    torch.mm(h, weight.t(), out=z)
    if bias is not None:
        z.add_(bias)
    return z if scale == 1 else z.mul_(scale)


def _terms(kernel: Kernel, inputs: Inputs, rates: tuple[Any, ...] | None) -> tuple[Tensor, Tensor]:
    """Both terms of a chunk; with their gradients, that of the logits takes their place."""
    if rates is not None and hasattr(kernel, "measure_and_write") and not any(isinstance(x, Tensor) for x in rates):
        return kernel.measure_and_write(inputs, rates, inputs.logits)  # type: ignore[no-any-return]
    task, distance, kept = kernel.measure(inputs)
    if rates is not None:
        by_row = [torch.as_tensor(x, dtype=task.dtype, device=task.device).expand_as(task) for x in rates]
        kernel.write_gradient(inputs, kept, by_row[0], by_row[1], inputs.logits)
    return task, distance


def _add_gradients(gradients: _Gradients, at: Any, h: Tensor, z: Tensor, weight: Tensor, scale: float) -> None:
    """From the gradient `z` of a chunk's logits, `(M * n, C)`, to those of all that made them."""
    if gradients.hidden is not None:
        gradients.hidden[:, at] = (z @ weight).mul_(scale).view_as(h).to(gradients.hidden.dtype)
    rows = h.flatten(0, 1)
    if gradients.weight is not None:
        if gradients.weight.dtype == z.dtype:
            gradients.weight.addmm_(z.t(), rows, alpha=scale)
        else:
            for start in range(0, len(weight), CLASSES_AT_ONCE):
                part = slice(start, start + CLASSES_AT_ONCE)
                gradients.weight[part].add_(z[:, part].t() @ rows, alpha=scale)
    if gradients.bias is not None:
        gradients.bias.add_(z.sum(0, dtype=gradients.bias.dtype), alpha=scale)


def _added(*gradients: Tensor | None) -> Tensor | float:
    """The sum of gradients that came, or 0."""
    return sum((x for x in gradients if x is not None), 0.0)


def _differentiable(
    head: Head,
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    wanted: tuple[bool, ...],
    came: tuple[Tensor | None, ...],
) -> list[Tensor | None]:
    """Gradients that have gradients themselves, by way of all logits at once."""
    logits = logits_of(hidden, weight, bias, head.logit_scale, head.softcap)
    task, distance = reference.rows(logits, head.labels, head.keep, head.class_weight, head.objective)
    terms = zip((task + head.alpha * distance, task, distance), came, strict=True)
    outputs, gradients = zip(*((term, g) for term, g in terms if g is not None and term.requires_grad), strict=True)
    inputs = [x for x, asked in zip((hidden, weight, bias), wanted, strict=True) if asked and x is not None]
    found = iter(torch.autograd.grad(outputs, inputs, gradients, create_graph=True))
    return [next(found) if asked else None for asked in wanted]
