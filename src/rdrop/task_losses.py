"""How far the answers are from the labels: the formulas, per position, mean over the passes."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F


def cross_entropy(log_p: Tensor, target: Tensor) -> Tensor:
    """-sum_c y_c log p_c: log-probabilities `(M, ..., C)` and weights of the classes y `(..., C)` to `(...)`.

    A class whose y is exactly 0 adds 0, also where it is impossible.
    """
    return -torch.where(target != 0, target * log_p, 0).sum(-1).mean(0)


def squared_error(values: Tensor, target: Tensor) -> Tensor:
    """(v - y)^2: `(M, ...)` and `(...)` to `(...)`."""
    return (values - target).square().mean(0)


def soft_targets(
    labels: Tensor, log_p: Tensor, keep: Tensor | None, label_smoothing: float, class_weight: Tensor | None
) -> Tensor:
    """The y of `cross_entropy`, as `torch.nn.functional.cross_entropy` defines it.

    Class ids become one-hot, then a share `label_smoothing` is spread evenly over the classes, then each class is
    scaled by its weight. Unlike torch, a class with a logit of minus infinity in any pass gets no share of the
    smoothing, so that padding a vocabulary with impossible classes changes neither loss nor gradient.

    Args:
        labels: Class ids `(...)`, or class probabilities `(..., C)`.
        log_p: Log-probabilities `(M, ..., C)`.
        keep: Positions that count `(...)`, or None for all; ids elsewhere may be anything.
        label_smoothing: In 0..1.
        class_weight: `(C,)` or None.
    """
    if labels.is_floating_point():
        target = labels.to(log_p.dtype)
    else:
        ids = labels if keep is None else torch.where(keep, labels, 0)
        target = F.one_hot(ids.long(), log_p.shape[-1]).to(log_p.dtype)
    if label_smoothing:
        possible = (log_p > -math.inf).all(0).to(log_p.dtype)
        share = label_smoothing / possible.sum(-1, keepdim=True).clamp(min=1)
        target = (1 - label_smoothing) * target + share * possible
    return target if class_weight is None else target * class_weight.to(log_p.dtype)
