"""Which positions count, and what a mean is over. One definition for the task loss and the divergence."""

from __future__ import annotations

from torch import Tensor

from rdrop.options import Reduction


def counted_positions(labels: Tensor | None, mask: Tensor | None, ignore_index: int | None) -> Tensor | None:
    """Positions with `labels != ignore_index` and a true `mask`, as bool; None means that all count.

    `labels` has one entry for each position (class probabilities are not passed here: they have none to ignore).
    """
    keep = None if mask is None else mask.bool()
    # Against an unsigned label a negative number would wrap around to a real one.
    if labels is not None and ignore_index is not None and (labels.dtype.is_signed or ignore_index >= 0):
        labelled = labels != ignore_index
        keep = labelled if keep is None else keep & labelled
    return keep


def divisor(
    positions: int, keep: Tensor | None, reduction: Reduction, normalizer: float | Tensor | None
) -> Tensor | float:
    """What the sum over positions is divided by: `normalizer`, or without one the number of positions that count.

    Where nothing counts it is 1, so that the mean of nothing is a 0 with a graph. No value is read on the host.
    """
    if reduction != "mean":
        return 1.0
    if normalizer is None:
        return max(positions, 1) if keep is None else keep.sum().clamp(min=1)
    return normalizer.where(normalizer != 0, 1) if isinstance(normalizer, Tensor) else normalizer or 1.0


def reduce(values: Tensor, reduction: Reduction, by: Tensor | float) -> Tensor:
    """Sum per-position `values`, which are 0 at positions that do not count, and divide; or leave them (`none`)."""
    return values if reduction == "none" else values.sum() / by
