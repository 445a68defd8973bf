"""The objective: task loss of M passes plus alpha times their divergence, in one documented unit."""

from __future__ import annotations

import warnings
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from rdrop import reduction as _reduction
from rdrop.errors import ProbabilitiesWarning
from rdrop.kernels import IMPLEMENTATIONS, Impl, choose
from rdrop.options import Divergence, Kind, Objective, Reduction, StopGradient, check_alpha, check_choice
from rdrop.schedule import Schedule, constant
from rdrop.shapes import check_reduction, check_shapes, wrong_class_id, wrong_dtype


class RDropOutput(NamedTuple):
    """The loss and its two terms; `loss` is `task_loss + alpha * divergence`."""

    loss: Tensor
    task_loss: Tensor
    divergence: Tensor


def rdrop_loss(
    logits: Tensor,
    labels: Tensor | None,
    *,
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
    inplace: bool = False,
) -> RDropOutput:
    """R-Drop's objective on the logits of M passes over one batch.

    With the passes' distributions P_1 ... P_M at a position, for the categorical kind and the default divergence:

        task_loss  = mean_i  -log P_i(y)
        divergence = mean over ordered pairs i != j of KL(P_i || P_j)
        loss       = task_loss + alpha * divergence

    each a mean over the positions that count. For M = 2 that is half of eq. 4 of Liang et al. 2021 (arXiv 2106.14448)
    with alpha standing for half of theirs; `rdrop.conventions` translates published values. Softmax and sums run in
    float32, or in float64 for float64 logits. Nothing is read on the host when the tensors are on another device.

    Args:
        logits: Unnormalised scores with a leading pass axis: `(M, B, ..., C)`, M >= 1; `(M, B, ...)` for the binary and
            the regression kind. Classes whose logit is -inf are impossible; one that is so in all passes adds nothing.
        labels: Class ids `(B, ...)`, class probabilities `(B, ..., C)`, or None for unlabelled data, whose task loss
            is 0.
            Binary: 0/1 (or probabilities) `(B, ...)`. Regression: values `(B, ...)`.
        alpha: Weight of the divergence, at least 0, a number or a tensor with one element.
        kind: `categorical` (softmax over the last axis; cross-entropy), `binary` (each entry an independent label;
            Bernoulli cross-entropy and divergence) or `regression` (squared error for both terms, paper A.4).
        ignore_index: Positions with this label count in neither term. None: every label counts (for regression targets
            that may be -100). It does not apply to class probabilities.
        mask: True at the positions that count, bool or integer `(B, ...)`.
        class_weight: Weight of each class in the task loss, `(C,)`; for the binary kind of each label, `(L,)`. A mean
            still divides by the number of positions, not by the sum of their weights.
        label_smoothing: Share of the target that is spread evenly over the possible classes, in 0..1. Task loss only.
        reduction: `mean` over the positions that count (the same set for both terms), `sum`, or `none` for `(B, ...)`.
        normalizer: Replaces the number of positions that `mean` divides by. With the count of the whole batch here, the
            gradients of micro-batches, or of several ranks, add up to exactly the gradient of that batch.
        divergence: `symmetric_kl`; `kl`, of the first pass against each other one; `js`, Jensen-Shannon; `mse`, squared
            differences of probabilities summed over classes.
        stop_gradient: None: gradients flow into all passes, as in the paper. `first`: the first pass is a constant
            inside the divergence. `rest`: all passes but the first are.
        impl: `reference`, `fused`, `native` (on CPUs), `triton` (on CUDA) or `auto`; `rdrop.kernels.choose` says what
            `auto` takes and why.
        inplace: Let the gradient of the logits take their place: no memory of their size is needed, and none is touched
            for the first time. From the call on their memory belongs to the loss: it is safe where nothing else reads
            them, such as a metric, or the backward of the operation that made them. (Of a linear layer it does not; of
            a tanh or a softmax it does, and autograd says so.) The gradient of `loss` can be had once, times any
            factor. Not inside activation checkpointing that the logits come into from outside.

    Returns:
        `loss`, `task_loss` and `divergence`, all with gradients: scalars, or `(B, ...)` with reduction `none`.

    Raises:
        ValueError: If a shape, an option or (on the CPU) a class id is out of place.
        TypeError: If a tensor has the wrong kind of dtype.

    Examples:
        >>> import torch, rdrop
        >>> logits = torch.tensor([[[2.0, 0.0]], [[0.0, 0.0]]], requires_grad=True)
        >>> out = rdrop.rdrop_loss(logits, torch.tensor([0]), alpha=1.0)
        >>> [round(term.item(), 4) for term in out]
        [0.7908, 0.41, 0.3808]
        >>> out.loss.backward()
    """
    plan = plan_reduction(
        logits, labels, alpha, kind, ignore_index, mask, class_weight, label_smoothing, reduction, normalizer,
        divergence, stop_gradient,
    )  # fmt: skip
    rows = IMPLEMENTATIONS[choose(impl, logits, labels, class_weight, plan.objective).name]
    foretold = plan.foretold() if logits.device.type == "cpu" and not torch.compiler.is_compiling() else None
    task, distance = rows(
        logits, labels, plan.keep, plan.class_weight, objective=plan.objective, foretold=foretold, inplace=inplace
    )
    task, distance = plan.reduce(plan.weigh(task)), plan.reduce(distance)
    return RDropOutput(alpha * distance if labels is None else task + alpha * distance, task, distance)


class ReductionPlan(NamedTuple):
    """What becomes of the terms of the positions, settled and checked before they are computed."""

    objective: Objective
    reduction: Reduction
    alpha: float | Tensor
    labelled: bool
    keep: Tensor | None
    """Positions that count, or None for all."""
    by: Tensor | float
    """What the sum over positions is divided by."""
    class_weight: Tensor | None
    label_weight: Tensor | None
    """For the binary kind, whose labels have each their weight."""

    def foretold(self) -> tuple[float, float] | None:
        """The gradients of both terms at every position, up to a factor; None if they are not all the same."""
        if self.reduction == "none" or self.label_weight is not None:
            return None
        weight = self.alpha.item() if isinstance(self.alpha, Tensor) else self.alpha
        return 1 / float(self.by) if self.labelled else 0.0, weight / float(self.by)

    def weigh(self, task: Tensor) -> Tensor:
        """The task loss of positions with the weights of labels."""
        return task if self.label_weight is None else task * self.label_weight.to(task.dtype)

    def reduce(self, values: Tensor) -> Tensor:
        """The mean or sum of a term over positions, or the positions themselves."""
        return _reduction.reduce(values, self.reduction, self.by)


def plan_reduction(
    logits: Tensor,
    labels: Tensor | None,
    alpha: float | Tensor,
    kind: Kind,
    ignore_index: int | None,
    mask: Tensor | None,
    class_weight: Tensor | None,
    label_smoothing: float,
    reduction: Reduction,
    normalizer: float | Tensor | None,
    divergence: Divergence,
    stop_gradient: StopGradient | None,
) -> ReductionPlan:
    """Check the arguments of `rdrop_loss`, and settle which positions count and what a mean is over."""
    if not isinstance(alpha, Tensor):
        check_alpha(alpha)
    objective = Objective(kind, divergence, stop_gradient, label_smoothing)
    check_reduction(reduction, normalizer)
    _check_tensors(logits, labels, mask, class_weight, objective, ignore_index)
    soft = kind == "categorical" and labels is not None and labels.is_floating_point()
    keep = _reduction.counted_positions(None if soft else labels, mask, ignore_index)
    look = reduction != "none" and logits.device.type == "cpu" and not torch.compiler.is_compiling()
    if keep is not None and look and keep.all():
        keep = None
    positions = logits.shape[1:-1] if kind == "categorical" else logits.shape[1:]
    by = _reduction.divisor(positions.numel(), keep, reduction, normalizer)
    weights = (None, class_weight) if kind == "binary" else (class_weight, None)
    return ReductionPlan(objective, reduction, alpha, labels is not None, keep, by, *weights)


def divergence(
    logits: Tensor,
    *,
    kind: Kind = "categorical",
    divergence: Divergence = "symmetric_kl",
    stop_gradient: StopGradient | None = None,
    mask: Tensor | None = None,
    reduction: Reduction = "mean",
    normalizer: float | Tensor | None = None,
    impl: Impl = "auto",
) -> Tensor:
    """The divergence alone, beside a task loss of your own (CTC, CRF, focal, ranking).

    The arguments are those of `rdrop_loss`, whose `divergence` this is; positions are taken out by `mask`.

    Examples:
        >>> import torch, rdrop
        >>> logits = torch.tensor([[[2.0, 0.0]], [[0.0, 0.0]]])
        >>> round(rdrop.divergence(logits).item(), 4)
        0.3808
    """
    return rdrop_loss(
        logits,
        None,
        kind=kind,
        divergence=divergence,
        stop_gradient=stop_gradient,
        mask=mask,
        reduction=reduction,
        normalizer=normalizer,
        impl=impl,
    ).divergence


class RDropLoss(nn.Module):
    """`rdrop_loss` as a module, with an alpha that may follow a schedule.

    A schedule is a function of the optimizer step (`rdrop.schedule` has the usual ones). Call `step` after each
    optimizer step, as with a learning-rate scheduler; the step is part of `state_dict`.

    Args:
        alpha: A number, or a schedule.
        kind: As for `rdrop_loss`.
        ignore_index: As for `rdrop_loss`.
        class_weight: As for `rdrop_loss`; kept as a buffer.
        label_smoothing: As for `rdrop_loss`.
        reduction: As for `rdrop_loss`.
        divergence: As for `rdrop_loss`.
        stop_gradient: As for `rdrop_loss`.
        impl: As for `rdrop_loss`.
        inplace: As for `rdrop_loss`.

    Examples:
        >>> import torch, rdrop
        >>> criterion = rdrop.RDropLoss(alpha=rdrop.schedule.linear_warmup(5.0, steps=100))
        >>> out = criterion(torch.randn(2, 8, 10), torch.randint(10, (8,)))
        >>> out.loss.equal(out.task_loss)
        True
        >>> criterion.step()
        >>> criterion.current_alpha
        0.05
    """

    class_weight: Tensor | None

    def __init__(
        self,
        alpha: float | Schedule = 1.0,
        *,
        kind: Kind = "categorical",
        ignore_index: int | None = -100,
        class_weight: Tensor | None = None,
        label_smoothing: float = 0.0,
        reduction: Reduction = "mean",
        divergence: Divergence = "symmetric_kl",
        stop_gradient: StopGradient | None = None,
        impl: Impl = "auto",
        inplace: bool = False,
    ) -> None:
        super().__init__()
        self.schedule = alpha if callable(alpha) else constant(alpha)
        self.objective = Objective(kind, divergence, stop_gradient, label_smoothing)
        check_choice("reduction", reduction, Reduction)
        choose(impl)
        self.ignore_index = ignore_index
        self.reduction: Reduction = reduction
        self.impl: Impl = impl
        self.inplace = inplace
        self.current_step = 0
        self.register_buffer("class_weight", class_weight)

    @property
    def current_alpha(self) -> float:
        """Alpha at the current step."""
        return check_alpha(self.schedule(self.current_step))

    def step(self) -> None:
        """Go on to the next optimizer step of the schedule."""
        self.current_step += 1

    def forward(
        self,
        logits: Tensor,
        labels: Tensor | None,
        *,
        mask: Tensor | None = None,
        normalizer: float | Tensor | None = None,
    ) -> RDropOutput:
        """Apply `rdrop_loss` with the alpha of the current step."""
        return rdrop_loss(logits, labels, mask=mask, normalizer=normalizer, inplace=self.inplace, **self.options)

    @property
    def options(self) -> dict[str, Any]:
        """What `rdrop_loss` and `linear_rdrop_loss` take, with the alpha of the current step."""
        return {
            "alpha": self.current_alpha,
            "kind": self.objective.kind,
            "ignore_index": self.ignore_index,
            "class_weight": self.class_weight,
            "label_smoothing": self.objective.label_smoothing,
            "reduction": self.reduction,
            "divergence": self.objective.divergence,
            "stop_gradient": self.objective.stop_gradient,
            "impl": self.impl,
        }

    def extra_repr(self) -> str:
        """Options in the module's printed form."""
        options = self.objective
        return (
            f"alpha={self.current_alpha}, kind={options.kind!r}, divergence={options.divergence!r}, impl={self.impl!r}"
        )

    def get_extra_state(self) -> dict[str, int]:
        """Keep the step of the schedule with the weights."""
        return {"current_step": self.current_step}

    def set_extra_state(self, state: dict[str, int]) -> None:
        """Restore the step of the schedule."""
        self.current_step = state["current_step"]


def _check_tensors(
    logits: Tensor,
    labels: Tensor | None,
    mask: Tensor | None,
    class_weight: Tensor | None,
    objective: Objective,
    ignore_index: int | None,
) -> None:
    """Refuse shapes and dtypes that would broadcast into a wrong loss, before anything is computed."""
    categorical = objective.kind == "categorical"
    if not logits.is_floating_point():
        raise wrong_dtype("logits", logits.dtype)
    for name, tensor in (("labels", labels), ("mask", mask), ("class_weight", class_weight)):
        if tensor is not None and tensor.device != logits.device:
            raise ValueError(f"{name} are on {tensor.device} and logits on {logits.device}; move them to one device")
    check_shapes(
        objective.kind,
        logits.shape,
        *(None if tensor is None else tensor.shape for tensor in (labels, mask, class_weight)),
        soft=categorical and labels is not None and labels.is_floating_point(),
        hint=": for a doubled batch [x; x] use logits.unflatten(0, (2, -1)), for separate outputs torch.stack",
    )
    if labels is not None and (labels.is_complex() or (categorical and labels.dtype == torch.bool)):
        raise wrong_dtype("labels", labels.dtype)
    if mask is not None and mask.is_floating_point():
        raise wrong_dtype("mask", mask.dtype)
    if logits.device.type == "cpu" and not torch.compiler.is_compiling():
        _check_values(logits, labels, mask, objective, ignore_index)


def _check_values(
    logits: Tensor, labels: Tensor | None, mask: Tensor | None, objective: Objective, ignore_index: int | None
) -> None:
    """Look at values, on the CPU alone: elsewhere it would make the host wait, and the device has its own assertion."""
    if objective.kind != "categorical" or logits.numel() == 0:
        return
    classes = logits.shape[-1]
    if labels is not None and not labels.is_floating_point() and labels.numel():
        low, high = labels.aminmax()
        if (low < 0 or high >= classes) and (wrong := _wrong_labels(labels, mask, classes, ignore_index)).any():
            where = tuple(int(i) for i in wrong.nonzero()[0])
            raise wrong_class_id(where, int(labels[where]), classes, ignore_index)
    first = logits.detach()[(0,) * (logits.dim() - 1)]
    if classes > 1 and first.min() >= 0 and abs(first.double().sum().item() - 1) < 1e-5:
        warnings.warn(
            "the logits look like probabilities (the first row is non-negative and sums to 1): rdrop_loss applies the "
            "softmax itself, so pass the model's raw scores",
            ProbabilitiesWarning,
            stacklevel=5,
        )


def _wrong_labels(labels: Tensor, mask: Tensor | None, classes: int, ignore_index: int | None) -> Tensor:
    """Positions that count and whose label is no class."""
    wrong = (labels < 0) | (labels >= classes)
    keep = _reduction.counted_positions(labels, mask, ignore_index)
    return wrong if keep is None else wrong & keep
