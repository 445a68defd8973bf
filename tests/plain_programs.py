"""The loss as published programs compute it, written from their formulas in plain torch, for two passes.

`snippet` is the one that most people paste; the benchmarks time it. The others belong to `rdrop.conventions`.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F


def snippet(first: Tensor, second: Tensor, labels: Tensor, alpha: float) -> Tensor:
    """Mean cross-entropies, and the sum over batch and classes of both divergences."""
    cross_entropy = 0.5 * (F.cross_entropy(first, labels) + F.cross_entropy(second, labels))
    forward = F.kl_div(F.log_softmax(first, dim=-1), F.softmax(second, dim=-1), reduction="none").sum()
    backward = F.kl_div(F.log_softmax(second, dim=-1), F.softmax(first, dim=-1), reduction="none").sum()
    return cross_entropy + alpha * (forward + backward) / 2


def paper(first: Tensor, second: Tensor, labels: Tensor, alpha: float) -> Tensor:
    """Eq. 4 for each example, then the mean: -log P1(y) - log P2(y) + alpha D."""
    nll = F.cross_entropy(first, labels, reduction="none") + F.cross_entropy(second, labels, reduction="none")
    return (nll + alpha * _symmetric(first, second)).mean()


def example_mean(first: Tensor, second: Tensor, labels: Tensor, alpha: float) -> Tensor:
    """Half the sum of the cross-entropies and the mean over examples of D."""
    cross_entropy = (F.cross_entropy(first, labels) + F.cross_entropy(second, labels)) / 2
    return cross_entropy + alpha * _symmetric(first, second).mean()


def official_vit(first: Tensor, second: Tensor, labels: Tensor, alpha: float) -> Tensor:
    """Both cross-entropies, alpha times both batch sums, no halves."""
    p, q = F.softmax(first, dim=-1), F.softmax(second, dim=-1)
    sums = (p * (p.log() - q.log())).sum() + (q * (q.log() - p.log())).sum()
    return F.cross_entropy(first, labels) + F.cross_entropy(second, labels) + alpha * sums


def official_bert(first: Tensor, second: Tensor, labels: Tensor, alpha: float) -> Tensor:
    """Both cross-entropies and alpha (0.5 in the source) times the mean of the two batch sums."""
    p_loss = F.kl_div(F.log_softmax(first, -1), F.softmax(second, -1), reduction="sum")
    q_loss = F.kl_div(F.log_softmax(second, -1), F.softmax(first, -1), reduction="sum")
    return F.cross_entropy(first, labels) + F.cross_entropy(second, labels) + alpha * (p_loss + q_loss) / 2


def class_mean(first: Tensor, second: Tensor, labels: Tensor, alpha: float) -> Tensor:
    """The divergence averaged over batch and classes."""
    cross_entropy = (F.cross_entropy(first, labels) + F.cross_entropy(second, labels)) / 2
    p, q = F.softmax(first, dim=-1), F.softmax(second, dim=-1)
    element_wise = 0.5 * (p * (p.log() - q.log()) + q * (q.log() - p.log()))
    return cross_entropy + alpha * element_wise.mean()


def keras_doubled(first: Tensor, second: Tensor, labels: Tensor, alpha: float) -> Tensor:
    """An interleaved batch of 2B rows, mean cross-entropy, and alpha / 4 times the mean over 2B rows of both KLs."""
    rows = torch.stack((first, second), 1).flatten(0, 1)
    cross_entropy = F.cross_entropy(rows, labels.repeat_interleave(2))
    log_p = rows.log_softmax(-1)
    even, odd = log_p[::2], log_p[1::2]
    both = (even.exp() * (even - odd)).sum(-1) + (odd.exp() * (odd - even)).sum(-1)
    return cross_entropy + alpha / 4 * both.repeat_interleave(2).mean()


def _symmetric(first: Tensor, second: Tensor) -> Tensor:
    """Eq. 2 for each example."""
    p, q = F.softmax(first, dim=-1), F.softmax(second, dim=-1)
    return 0.5 * ((p * (p.log() - q.log())).sum(-1) + (q * (q.log() - p.log())).sum(-1))


PROGRAMS: dict[str, Callable[[Tensor, Tensor, Tensor, float], Tensor]] = {
    "paper": paper,
    "example-mean": example_mean,
    "batch-sum": snippet,
    "official-vit": official_vit,
    "official-bert": official_bert,
    "class-mean": class_mean,
    "keras-doubled": keras_doubled,
}
