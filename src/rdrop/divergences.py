"""How far the answers of M passes are apart: the formulas, per position, in plain differentiable torch.

`log_p` holds log-probabilities `(M, ..., C)` with M >= 2; the result drops the pass axis and the class axis. Sums run
over classes, never means, so the number of classes does not scale the penalty. Zero times infinity is zero: a class
that is impossible in all passes adds nothing; one that is impossible in some but not in all makes a Kullback-Leibler
divergence infinite.
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

    The mean over the M (M - 1) pairs is the covariance of p and log p over the passes, summed over the classes:
    1 / (M - 1) * sum_c sum_i (p_i - mean p) (log p_i - mean log p). It costs O(M) and, as both factors shrink together,
    it loses no digits where the passes nearly agree.
    """
    p = log_p.exp()
    centred = minus(log_p, log_p.mean(0))
    infinite = centred.isinf()
    weight = torch.where(infinite, p, p - p.mean(0))
    centred = torch.where(infinite & (p == 0), 0, centred)
    return (weight * centred).sum((0, -1)) / (len(log_p) - 1)


def kl(log_p: Tensor) -> Tensor:
    """Mean of KL(P1 || Pj) over the passes j after the first."""
    p = log_p[0].exp()
    return (p * torch.where(p == 0, 0, minus(log_p[0], log_p[1:].mean(0)))).sum(-1)


def js(log_p: Tensor) -> Tensor:
    """Jensen-Shannon divergence: mean over the passes of KL(Pi || mean of all P); between 0 and log M."""
    # The gradient of logsumexp over nothing but minus infinities is undefined; `minus` does not look at those classes.
    log_mean = torch.logsumexp(log_p.clamp(min=-1e30), 0) - math.log(len(log_p))
    return (log_p.exp() * minus(log_p, log_mean)).sum((0, -1)) / len(log_p)


def mse(log_p: Tensor) -> Tensor:
    """Mean over pairs of passes of sum_c (p_i - p_j)^2; between 0 and 2."""
    return squared_difference(log_p.exp()).sum(-1)


DIVERGENCES: dict[Divergence, Callable[[Tensor], Tensor]] = {
    "symmetric_kl": symmetric_kl,
    "kl": kl,
    "js": js,
    "mse": mse,
}


def squared_difference(values: Tensor) -> Tensor:
    """Mean over pairs of passes of (v_i - v_j)^2, element by element: `(M, ...)` to `(...)`."""
    return 2 * (values - values.mean(0)).square().sum(0) / (len(values) - 1)


def minus(a: Tensor, b: Tensor) -> Tensor:
    """Subtract log-probabilities, and 0 where a is minus infinity: the probability beside it is exactly 0."""
    return torch.where(a == -math.inf, 0, a - b)


def two_classes(logits: Tensor) -> Tensor:
    """Log-probabilities (yes, no) of independent labels: `(...)` to `(..., 2)`."""
    return torch.stack((F.logsigmoid(logits), F.logsigmoid(-logits)), -1)
