"""Which positions count, and what a mean is over. One definition for the task loss and the divergence."""

from __future__ import annotations

from torch import Tensor

from rdrop.options import Reduction


def counted_positions(labels: Tensor | None, mask: Tensor | None, ignore_index: int | None) -> Tensor | None:
    """Positions with `labels != ignore_index` and a true `mask`, as bool; None means that all count.

    `labels` has one entry for each position (class probabilities are not passed here: they have none to ignore).
    """
    keep = None if mask is None else mask.bool()
    if labels is not None and ignore_index is not None and labels.dtype.is_signed:
        labelled = labels != ignore_index
        keep = labelled if keep is None else keep & labelled
    return keep


def reduce(values: Tensor, keep: Tensor | None, reduction: Reduction, normalizer: float | Tensor | None) -> Tensor:
    """Reduce per-position `values`, which are 0 at positions that do not count.

    `mean` divides by `normalizer`, or without one by the number of positions that count. A divisor of 0 (nothing
    counts) gives a 0 with a graph. No value is read on the host.
    """
    if reduction == "none":
        return values
    total = values.sum()
    if reduction == "sum":
        return total
    if normalizer is None:
        return total / (max(values.numel(), 1) if keep is None else keep.sum().clamp(min=1))
    if isinstance(normalizer, Tensor):
        normalizer = normalizer.to(total)
        return total / normalizer.where(normalizer != 0, 1)
    return total / normalizer
