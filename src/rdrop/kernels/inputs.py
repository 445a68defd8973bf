"""What kernels outside torch are given: the arguments of `rdrop.kernels.reference.rows` as they can walk over them."""

from __future__ import annotations

from typing import NamedTuple, get_args

from torch import Tensor

from rdrop.options import Divergence, Objective


class Inputs(NamedTuple):
    """The arguments of `rdrop.kernels.reference.rows`, with what a kernel makes of them."""

    logits: Tensor
    labels: Tensor | None
    keep: Tensor | None
    class_weight: Tensor | None
    objective: Objective

    @property
    def ids(self) -> Tensor | None:
        """Class ids of the positions, int64."""
        return None if self.labels is None or self.labels.is_floating_point() else self.labels.long().contiguous()

    @property
    def target(self) -> Tensor | None:
        """Class probabilities of the positions, or the labels of a kind without a class axis, float32."""
        if self.labels is None or (self.ids is not None and self.objective.kind == "categorical"):
            return None
        return self.labels.float().contiguous()

    @property
    def mask(self) -> Tensor | None:
        """True at the positions that count."""
        return None if self.keep is None else self.keep.contiguous()

    @property
    def weight(self) -> Tensor | None:
        """Weights of the classes, float32."""
        return None if self.class_weight is None else self.class_weight.float().contiguous()

    @property
    def divergence(self) -> int:
        """The place of the divergence among `rdrop.options.Divergence`."""
        return get_args(Divergence).index(self.objective.divergence)

    @property
    def moves(self) -> int:
        """The passes into which the divergence sends a gradient, one bit for each."""
        return sum(1 << k for k in range(len(self.logits)) if self.objective.moves(k))


class Rows(NamedTuple):
    """Logits `(M, *positions, C)` whose positions are two axes of rows, and the strides of these."""

    logits: Tensor
    outer: int
    inner: int
    outer_stride: int
    inner_stride: int


def rows_of(logits: Tensor, *, classes_side_by_side: bool = False) -> Rows:
    """The rows of logits of any strides; copied only if they take more than two axes, or the classes lie apart."""
    merged = [(1, 0), (1, 0)]
    for size, stride in zip(logits.shape[1:-1], logits.stride()[1:-1], strict=True):
        rows, step = merged[-1]
        if rows == 1 or step == size * stride:
            merged[-1] = rows * size, stride
        elif size > 1:
            merged.append((size, stride))
    apart = classes_side_by_side and logits.shape[-1] > 1 and logits.stride(-1) != 1
    if logits.numel() and (len(merged) > 3 or apart):
        return rows_of(logits.contiguous())
    (outer, outer_stride), (inner, inner_stride) = merged[-2:]
    return Rows(logits, outer, inner, outer_stride, inner_stride)
