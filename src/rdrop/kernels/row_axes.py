"""How kernels walk over positions: any strides, brought down to two axes of rows where that takes no copy."""

from __future__ import annotations

from torch import Tensor


def row_axes(logits: Tensor) -> tuple[tuple[int, int], tuple[int, int]] | None:
    """The positions of logits `(M, *positions, C)` as two axes of rows: sizes and strides.

    None if it takes more than two axes.
    """
    if logits.numel() == 0:
        return (0, 1), (0, 0)
    merged = [(1, 0), (1, 0)]
    for size, stride in zip(logits.shape[1:-1], logits.stride()[1:-1], strict=True):
        rows, step = merged[-1]
        if rows == 1 or step == size * stride:
            merged[-1] = rows * size, stride
        elif size > 1:
            merged.append((size, stride))
    if len(merged) > 3:
        return None
    (outer, outer_stride), (inner, inner_stride) = merged[-2:]
    return (outer, inner), (outer_stride, inner_stride)
