"""The formulas as on paper, differentiated by autograd. Every other implementation answers to this one."""

from __future__ import annotations

import torch
from torch import Tensor

from rdrop.divergences import DIVERGENCES, squared_difference, two_classes
from rdrop.options import Objective
from rdrop.task_losses import cross_entropy, soft_targets, squared_error


def rows(
    logits: Tensor,
    labels: Tensor | None,
    keep: Tensor | None,
    class_weight: Tensor | None,
    objective: Objective,
    *,
    foretold: tuple[float, float] | None = None,  # noqa: ARG001
    inplace: bool = False,  # noqa: ARG001
) -> tuple[Tensor, Tensor]:
    """Task loss and divergence of each position; 0 where `keep` is false, whatever stands there.

    Args:
        logits: `(M, *positions, C)`; `(M, *positions)` for kinds without a class axis.
        labels: Ids `(*positions)`, probabilities `(*positions, C)`, values `(*positions)`, or None.
        keep: Positions that count, bool `(*positions)`, or None for all.
        class_weight: `(C,)` for the categorical kind, or None.
        objective: The options.
        foretold: The gradients of both terms that every row will get in backward, if they are known up to a common
            factor; an implementation may prepare for them, and must not rely on them.
        inplace: Whether the gradient of the logits may take their place, for implementations that can do it.

    Returns:
        Two tensors `(*positions)` in float32, or in float64 for float64 logits.
    """
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    if keep is not None:
        logits = torch.where(keep.unsqueeze(-1) if objective.kind == "categorical" else keep, logits, 0)
    if objective.kind == "regression":
        answers = logits
        task = None if labels is None else squared_error(logits, labels.to(logits.dtype))
    else:
        answers = logits.log_softmax(-1) if objective.kind == "categorical" else two_classes(logits)
        if objective.kind == "binary" and labels is not None:
            labels = torch.stack((yes := labels.to(logits.dtype), 1 - yes), -1)
        task = None
        if labels is not None:
            target = soft_targets(labels, answers.detach(), keep, objective.label_smoothing, class_weight)
            task = cross_entropy(answers, target)
    distance = _divergence(answers, objective)
    if task is None:
        task = torch.zeros_like(distance)
    if keep is not None:
        task, distance = torch.where(keep, task, 0), torch.where(keep, distance, 0)
    return task, distance


def gradient(
    logits: Tensor,
    labels: Tensor | None,
    keep: Tensor | None,
    class_weight: Tensor | None,
    objective: Objective,
    task: Tensor,
    distance: Tensor,
) -> Tensor:
    """The gradient of the logits, given those of both terms, in a form that can be differentiated again."""
    terms = rows(logits, labels, keep, class_weight, objective)
    differentiable = [(term, g) for term, g in zip(terms, (task, distance), strict=True) if term.requires_grad]
    outputs, gradients = zip(*differentiable, strict=True)
    return torch.autograd.grad(outputs, logits, gradients, create_graph=True)[0]


def _divergence(answers: Tensor, objective: Objective) -> Tensor:
    """Divergence of values or log-probabilities, with the passes that `stop_gradient` names held constant."""
    if len(answers) == 1:
        return answers.new_zeros(answers.shape[1:] if objective.kind == "regression" else answers.shape[1:-1])
    if objective.stop_gradient is not None:
        answers = torch.stack([a if objective.moves(i) else a.detach() for i, a in enumerate(answers)])
    return squared_difference(answers) if objective.kind == "regression" else DIVERGENCES[objective.divergence](answers)
