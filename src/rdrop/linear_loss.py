"""R-Drop's objective on hidden states: the last linear layer and the loss in one, without the logits as a whole."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from rdrop.kernels import IMPLEMENTATIONS, Impl, choose, kernel, linear
from rdrop.loss import RDropOutput, plan_reduction
from rdrop.options import Divergence, Kind, Reduction, StopGradient


def linear_rdrop_loss(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor | None,
    *,
    bias: Tensor | None = None,
    logit_scale: float = 1.0,
    softcap: float | None = None,
    alpha: float | Tensor = 1.0,
    kind: Kind = "categorical",
    ignore_index: int | None = -100,
    mask: Tensor | None = None,
    class_weight: Tensor | None = None,
    label_smoothing: float = 0.0,
    reduction: Reduction = "mean",
    normalizer: float | Tensor | None = None,
    divergence: Divergence = "symmetric_kl",
    stop_gradient: StopGradient | None = None,
    impl: Impl = "auto",
) -> RDropOutput:
    """`rdrop_loss` of the logits of a linear layer, which exist for a chunk of positions at a time.

    The logits are `cap(logit_scale * (hidden @ weight.T + bias))` with `cap(z) = softcap * tanh(z / softcap)`, and
    the three numbers and all gradients are those of `rdrop_loss` on them, up to rounding. Memory: the gradients of
    hidden states and weight, and one chunk. The gradients of weight and bias are summed up in float32, in the same
    order every time. On a CPU, positions that do not count cost nothing.

    The gradients are made in forward; backward through `loss`, as a mean or a sum, multiplies them by a factor.
    Backward through `task_loss` or `divergence`, and with reduction `none`, makes the logits a second time.

    Args:
        hidden: What the layer gets, with a leading pass axis: `(M, B, ..., D)`.
        weight: The layer's weight `(C, D)`; of a sharded one (DTensor) all is gathered, and its gradient
            is the mean over ranks, as with DDP and FSDP.
        labels: As for `rdrop_loss`, whose logits would be `(M, B, ..., C)`.
        bias: The layer's bias `(C,)`.
        logit_scale: Factor of the layer's output, as in Cohere's and Granite's models; finite.
        softcap: Largest logit that a tanh lets through, as in Gemma's models; above 0.
        alpha: As for `rdrop_loss`.
        kind: As for `rdrop_loss`.
        ignore_index: As for `rdrop_loss`.
        mask: As for `rdrop_loss`.
        class_weight: As for `rdrop_loss`.
        label_smoothing: As for `rdrop_loss`.
        reduction: As for `rdrop_loss`.
        normalizer: As for `rdrop_loss`.
        divergence: As for `rdrop_loss`.
        stop_gradient: As for `rdrop_loss`.
        impl: As for `rdrop_loss`; with `reference`, and inside `torch.compile`, all logits are made at once.

    Raises:
        ValueError: If a shape or an option is out of place.
        TypeError: If a tensor has the wrong kind of dtype.

    Examples:
        >>> import torch, rdrop
        >>> hidden, head = torch.randn(2, 8, 16), torch.nn.Linear(16, 1000)
        >>> labels = torch.randint(1000, (8,))
        >>> out = rdrop.linear_rdrop_loss(hidden, head.weight, labels, bias=head.bias, alpha=0.5)
        >>> torch.testing.assert_close(out, rdrop.rdrop_loss(head(hidden), labels, alpha=0.5))
        >>> out.loss.backward()
    """
    weight, bias = _whole(weight), None if bias is None else _whole(bias)
    dtype = _check_head(hidden, weight, bias, logit_scale, softcap)
    stand_in = hidden.new_zeros((), dtype=dtype).expand(*hidden.shape[:-1], len(weight))
    plan = plan_reduction(
        stand_in, labels, alpha, kind, ignore_index, mask, class_weight, label_smoothing, reduction, normalizer,
        divergence, stop_gradient,
    )  # fmt: skip
    name = choose(impl, stand_in, labels, class_weight, plan.objective).name
    loss = None
    if name == "reference" or torch.compiler.is_compiling():
        logits = linear.logits_of(hidden, weight, bias, logit_scale, softcap)
        task, distance = IMPLEMENTATIONS[name](logits, labels, plan.keep, plan.class_weight, objective=plan.objective)
    else:
        axes = hidden.dim() - 2
        head = linear.Head(
            kernel=kernel(name, plan.objective),
            objective=plan.objective,
            labels=None if labels is None else labels.flatten(0, axes - 1),
            keep=None if plan.keep is None else plan.keep.flatten(0, axes - 1),
            class_weight=plan.class_weight,
            alpha=_constant(alpha),
            logit_scale=logit_scale,
            softcap=softcap,
            dtype=dtype,
        )
        together = reduction != "none" and plan.label_weight is None and not _has_gradient(alpha)
        by = float(plan.by) if hidden.device.type == "cpu" else plan.by
        terms = linear.rows(head, hidden.flatten(1, -2), weight, bias, 1 / by if together else None)
        shape = stand_in.shape[1:] if kind != "categorical" else stand_in.shape[1:-1]
        loss, task, distance = (term.view(shape) for term in terms)
        loss = loss if together else None
    task = plan.weigh(task)
    if loss is None:
        loss = alpha * distance if labels is None else task + alpha * distance
    return RDropOutput(plan.reduce(loss), plan.reduce(task), plan.reduce(distance))


def _whole(parameter: Tensor) -> Tensor:
    """A parameter with what other ranks have of it."""
    return _Gathered.apply(parameter) if hasattr(parameter, "full_tensor") else parameter


class _Gathered(torch.autograd.Function):
    """A sharded parameter as a whole; its gradient is the mean over ranks, as with DDP and FSDP."""

    @staticmethod
    def forward(ctx: Any, parameter: Any) -> Tensor:
        ctx.mesh, ctx.placements = parameter.device_mesh, parameter.placements
        whole: Tensor = parameter.full_tensor()
        return whole

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        from torch.distributed.tensor import DTensor, Partial

        mean = gradient / ctx.mesh.size()
        parts = DTensor.from_local(mean, ctx.mesh, [Partial()] * ctx.mesh.ndim, run_check=False)
        return parts.redistribute(placements=ctx.placements)


def _constant(value: float | Tensor) -> float | Tensor:
    """A number without its gradient, on a CPU as a number of Python."""
    if not isinstance(value, Tensor):
        return value
    return value.item() if value.device.type == "cpu" else value.detach()


def _has_gradient(value: float | Tensor) -> bool:
    """Whether a number is one that is learned."""
    return isinstance(value, Tensor) and value.requires_grad


def _check_head(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, logit_scale: float, softcap: float | None
) -> torch.dtype:
    """Refuse a layer that does not fit; the dtype of its logits."""
    if hidden.dim() < 3 or len(hidden) == 0:
        raise ValueError(
            f"hidden has shape {tuple(hidden.shape)}; expected (M, B, ..., D) with the M >= 1 passes on the first axis"
        )
    if weight.dim() != 2 or weight.shape[1] != hidden.shape[-1]:
        raise ValueError(f"weight has shape {tuple(weight.shape)}; expected (C, {hidden.shape[-1]}) for this hidden")
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"bias has shape {tuple(bias.shape)}; expected ({len(weight)},)")
    if not math.isfinite(logit_scale):
        raise ValueError(f"logit_scale is {logit_scale!r}; expected a finite number")
    if softcap is not None and not (math.isfinite(softcap) and softcap > 0):
        raise ValueError(f"softcap is {softcap!r}; expected a finite number above 0, or None for no cap")
    device = hidden.device.type
    if torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    for name, tensor in (("weight", weight), ("bias", bias)):
        if tensor is not None and tensor.dtype != hidden.dtype:
            raise TypeError(f"{name} has dtype {tensor.dtype} and hidden {hidden.dtype}; cast one, or use autocast")
    return hidden.dtype
