"""The formulas: how far the M passes are apart, and how far each is from the labels.

Everything here is per position, in plain differentiable torch: `log_p` holds log-probabilities `(M, ..., C)`, M >= 2, and
the result drops the pass axis and the class axis. Sums run over classes, never means, so the number of classes does not
scale the penalty. Zero times minus infinity is zero: a class that is impossible in all passes adds nothing, one that is
impossible in some but not in all makes a Kullback-Leibler divergence infinite.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from rdrop.options import Divergence


def symmetric_kl(log_p: Tensor) -> Tensor:
    """Mean of KL(Pi || Pj) over all ordered pairs of passes; for two passes the paper's D (eq. 2).

    The mean over M (M - 1) pairs is the covariance over passes of p and log p, summed over classes:
    1 / (M - 1) * sum_i sum_c (p_i - mean p) (log p_i - mean log p). That costs O(M) and, since p and log p move together,
    loses no digits when the passes nearly agree.
    """
    p = log_p.exp()
    centred = _minus(log_p, log_p.mean(0))
    weight = torch.where(centred.isinf(), p, p - p.mean(0))
    return (weight * centred).sum((0, -1)) / (len(log_p) - 1)


def kl(log_p: Tensor) -> Tensor:
    """Mean of KL(P1 || Pj) over the passes j after the first."""
    centred = _minus(log_p[0], log_p[1:].mean(0))
    return (log_p[0].exp() * centred).sum(-1)


def js(log_p: Tensor) -> Tensor:
    """Jensen-Shannon divergence: mean of KL(Pi || mean of all P) over the passes; at most log M."""
    log_mean = torch.logsumexp(log_p, 0) - math.log(len(log_p))
    return (log_p.exp() * _minus(log_p, log_mean)).sum((0, -1)) / len(log_p)


def mse(log_p: Tensor) -> Tensor:
    """Mean over pairs of passes of sum_c (p_i - p_j)^2."""
    return squared_difference(log_p.exp()).sum(-1)


def squared_difference(values: Tensor) -> Tensor:
    """Mean of (v_i - v_j)^2 over pairs of passes, element by element: `(M, ...)` to `(...)`."""
    return 2 * (values - values.mean(0)).square().sum(0) / (len(values) - 1)


DIVERGENCES: dict[Divergence, Callable[[Tensor], Tensor]] = {
    "symmetric_kl": symmetric_kl,
    "kl": kl,
    "js": js,
    "mse": mse,
}


def cross_entropy(log_p: Tensor, target: Tensor) -> Tensor:
    """-sum_c y_c log p_c, mean over passes: `(M, ..., C)` and probabilities `(..., C)` to `(...)`."""
    return -torch.where(target > 0, target * log_p, 0).sum(-1).mean(0)


def smooth_targets(target: Tensor, log_p: Tensor, label_smoothing: float) -> Tensor:
    """Move a share of each target to an even spread over the classes that are possible in all passes.

    A class with a logit of minus infinity gets no share: adding impossible classes (a padded or constrained vocabulary)
    changes neither loss nor gradient.
    """
    possible = (log_p > -math.inf).all(0)
    return (1 - label_smoothing) * target + label_smoothing * possible / possible.sum(-1, keepdim=True).clamp(min=1)


def two_classes(logits: Tensor) -> Tensor:
    """Log-probabilities (yes, no) of independent labels: `(...)` to `(..., 2)`."""
    return torch.stack((F.logsigmoid(logits), F.logsigmoid(-logits)), -1)


def _minus(a: Tensor, b: Tensor) -> Tensor:
    """a - b, and 0 where a is minus infinity: the probability beside it is exactly 0."""
    return torch.where(a == -math.inf, 0, a - b)
