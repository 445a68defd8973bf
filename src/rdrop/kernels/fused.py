"""Closed-form gradients in row chunks: no full-size temporary besides the gradient of the logits.

Forward and backward both walk over chunks of rows small enough to stay in the processor's cache, and the backward pass
writes each chunk of the gradient once. With p_k = softmax of pass k, u the target weights of a row, and row gradients
`task` and `distance` from above, the gradient of pass k is

    task / M * (sum(u) p_k - u)  +  distance * ( c_k p_k (s_k - E_{p_k}[s_k]) + w_k (p_k - anchor) )

where the scores s, the anchor and the weights c, w belong to the divergence (`_slope`). For two passes and the
symmetric Kullback-Leibler divergence this is the gradient that follows from eq. 2 and 4 of the paper.
"""

from __future__ import annotations

import ctypes
import functools
import math
import mmap
import sys
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rdrop.divergences import squared_difference, two_classes
from rdrop.kernels import reference
from rdrop.options import Objective
from rdrop.task_losses import cross_entropy, soft_targets, squared_error

CHUNK = {"cpu": 1 << 18, "cuda": 1 << 25}
"""Logits in a chunk: what stays in a CPU's cache; on a GPU, what keeps it busy."""


def rows(
    logits: Tensor,
    labels: Tensor | None,
    keep: Tensor | None,
    class_weight: Tensor | None,
    objective: Objective,
) -> tuple[Tensor, Tensor]:
    """Task loss and divergence of each position, as `rdrop.kernels.reference.rows` defines them."""
    task, distance = _Rows.apply(logits, labels, keep, class_weight, objective)
    return task, distance


class _Rows(torch.autograd.Function):
    """The pair of forward and backward that autograd sees."""

    @staticmethod
    def forward(
        logits: Tensor,
        labels: Tensor | None,
        keep: Tensor | None,
        class_weight: Tensor | None,
        objective: Objective,
    ) -> tuple[Tensor, Tensor]:
        dtype = torch.promote_types(logits.dtype, torch.float32)
        positions = logits.shape[1:-1] if objective.kind == "categorical" else logits.shape[1:]
        task, distance = (logits.new_zeros(positions, dtype=dtype) for _ in range(2))
        for (z,), (y, k, t, d) in _chunks(positions, (logits,), (labels, keep, task, distance)):
            chunk = _Chunk(z, y, k, class_weight, objective, dtype)
            for out, values in ((t, chunk.task_loss()), (d, chunk.divergence())):
                if values is not None:
                    out.copy_(values if k is None else torch.where(k, values, 0))
        return task, distance

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:  # noqa: ARG004
        *tensors, ctx.objective = inputs
        ctx.save_for_backward(*tensors)

    @staticmethod
    def backward(ctx: Any, task: Tensor, distance: Tensor) -> tuple[Tensor | None, ...]:
        logits, labels, keep, class_weight = ctx.saved_tensors
        if torch.is_grad_enabled():  # create_graph=True: a gradient that has a gradient itself is autograd's business
            terms = reference.rows(logits, labels, keep, class_weight, ctx.objective)
            differentiable = [(term, g) for term, g in zip(terms, (task, distance), strict=True) if term.requires_grad]
            outputs, gradients = zip(*differentiable, strict=True)
            return *torch.autograd.grad(outputs, logits, gradients, create_graph=True), None, None, None, None
        dtype = torch.promote_types(logits.dtype, torch.float32)
        gradient = _in_huge_pages(torch.empty_like(logits))
        for (z, out), (y, k, t, d) in _chunks(task.shape, (logits, gradient), (labels, keep, task, distance)):
            _Chunk(z, y, k, class_weight, ctx.objective, dtype).write_gradient(t, d, out)
            if k is not None:
                out.masked_fill_(~k.unsqueeze(-1) if ctx.objective.kind == "categorical" else ~k, 0)
        return gradient, None, None, None, None


class _Slope(NamedTuple):
    """The parts of a divergence's gradient: per pass c p (s - E_p[s]) + w (p - anchor)."""

    scores: Tensor
    anchor: Tensor | None
    c: list[float]
    w: list[float]


class _Chunk:
    """A chunk of rows: logits `(M, R, C)`, labels `(R)` or `(R, C)`; `(M, R)` and `(R)` without a class axis."""

    def __init__(
        self,
        z: Tensor,
        labels: Tensor | None,
        keep: Tensor | None,
        class_weight: Tensor | None,
        objective: Objective,
        dtype: torch.dtype,
    ) -> None:
        self.labels, self.keep, self.class_weight, self.objective = labels, keep, class_weight, objective
        self.passes = len(z)
        if objective.kind == "categorical":
            self.p, self.log_p = _softmax(z.to(dtype))
        elif objective.kind == "binary":
            self.log_p = two_classes(z.to(dtype))
            self.p = self.log_p.exp()
            if labels is not None:
                self.labels = torch.stack((yes := labels.to(dtype), 1 - yes), -1)
        else:
            self.values = z.to(dtype)

    def task_loss(self) -> Tensor | None:
        """Mean over passes of the task loss, `(R)`, or None without labels."""
        if self.labels is None:
            return None
        if self.objective.kind == "regression":
            return squared_error(self.values, self.labels.to(self.values.dtype))
        if self._hard:
            index, weight = self._class_ids()
            return -weight * self.log_p.gather(-1, index).mean(0).squeeze(-1)
        return cross_entropy(self.log_p, self._soft_targets())

    def divergence(self) -> Tensor | None:
        """Divergence of the passes, `(R)`, or None for a single one. Uses up the probabilities."""
        if self.passes == 1:
            return None
        if self.objective.kind == "regression":
            return squared_difference(self.values)
        p = self.p
        scores, anchor, c, _ = self._slope()
        if self.objective.divergence == "mse":
            return _dot(scores, scores).sum(0) * (c[0] / 2)
        if self.objective.divergence == "symmetric_kl":
            assert anchor is not None
            if self._finite:
                return _dot(p.sub_(anchor), scores).sum(0) * c[0]
            p = torch.where(scores.isinf(), p, p - anchor)
        return torch.stack([ci * _dot(pi, si) for ci, pi, si in zip(c, p, scores, strict=True) if ci]).sum(0)

    def write_gradient(self, task: Tensor, distance: Tensor, out: Tensor) -> None:
        """Write the gradient of the rows into `out` (the shape of the logits), given those of both terms, `(R)`."""
        objective, passes = self.objective, self.passes
        moves = [passes > 1 and objective.moves(k) for k in range(passes)]
        if objective.kind == "regression":
            centred = self.values - self.values.mean(0)
            for k in range(passes):
                g = torch.zeros_like(task)
                if self.labels is not None:
                    g += 2 / passes * task * (self.values[k] - self.labels.to(g.dtype))
                if moves[k]:
                    g += 4 / (passes - 1) * distance * centred[k]
                out[k].copy_(g)
            return
        p = self.p
        task, distance = (task / passes).unsqueeze(-1), distance.unsqueeze(-1)
        target, index = None, None
        mass: Tensor | float = 0.0
        if self.labels is not None and self._hard:
            index, weight = self._class_ids()
            mass = weight.unsqueeze(-1)
        elif self.labels is not None:
            target = self._soft_targets()
            mass = target.sum(-1, keepdim=True)
        slope = self._slope() if any(moves) else None
        mean_score = None if slope is None else _dot(p, slope.scores).unsqueeze(-1)
        for k in range(passes):
            rate = task * mass
            if slope is None or not moves[k]:
                g = p[k] * rate
            else:
                rate = rate + slope.w[k] * distance
                if slope.c[k]:
                    assert mean_score is not None
                    scale = slope.c[k] * distance
                    g = slope.scores[k].mul_(scale).add_(rate - scale * mean_score[k]).mul_(p[k])
                else:
                    g = p[k] * rate
            if index is not None:
                g.scatter_add_(-1, index[k], -task * mass)
            elif target is not None:
                g.addcmul_(target, task, value=-1)
            if slope is not None and slope.anchor is not None and moves[k] and slope.w[k]:
                in_place = objective.kind == "categorical"  # one walk over memory less than a copy afterwards
                g = torch.addcmul(g, slope.anchor, distance, value=-slope.w[k], out=out[k] if in_place else None)
                if in_place:
                    continue
            out[k].copy_(g[..., 0] if objective.kind == "binary" else g)

    @property
    def _hard(self) -> bool:
        """Whether the target of a row is a single class."""
        return self.labels is not None and not self.labels.is_floating_point() and not self.objective.label_smoothing

    def _class_ids(self) -> tuple[Tensor, Tensor]:
        """Ids for gather and scatter, `(M, R, 1)`, and the weight of each row's class, `(R)`."""
        assert self.labels is not None
        ids = (self.labels if self.keep is None else torch.where(self.keep, self.labels, 0)).long()
        if self.class_weight is None:
            weight = self.log_p.new_ones(ids.shape)
        else:
            weight = self.class_weight.to(self.log_p.dtype)[ids]
        return ids.unsqueeze(-1).expand(self.passes, *ids.shape, 1), weight

    def _soft_targets(self) -> Tensor:
        assert self.labels is not None
        return soft_targets(self.labels, self.log_p, self.keep, self.objective.label_smoothing, self.class_weight)

    def _slope(self) -> _Slope:
        """The scores `(M, R, C)`, the anchor `(R, C)` and the weights of the divergence. Overwrites `log_p`."""
        p, log_p, M = self.p, self.log_p, self.passes
        match self.objective.divergence:
            case "symmetric_kl":
                each = [1 / (M - 1)] * M
                return _Slope(self._centred(_mean(log_p)), _mean(p), each, each)
            case "kl":
                others = _mean(log_p[1:])
                return _Slope(self._centred(others), p[0], [1.0] + [0.0] * (M - 1), [0.0] + [1 / (M - 1)] * (M - 1))
            case "js":
                log_mean = torch.logsumexp(log_p, 0) - math.log(M)
                return _Slope(self._centred(log_mean), None, [1 / M] * M, [0.0] * M)
            case "mse":
                return _Slope(p - _mean(p), None, [4 / (M - 1)] * M, [0.0] * M)

    def _centred(self, centre: Tensor) -> Tensor:
        """`log_p` - `centre` in place, and 0 where p is 0 and the difference is not finite."""
        scores = self.log_p.sub_(centre)
        # A sum is finite only if all its terms are, so one reduction finds the rare chunk that has impossible
        # classes. On a GPU looking at it would make the host wait: there every chunk is cleaned.
        self._finite = scores.device.type == "cpu" and math.isfinite(scores.sum().item())
        if not self._finite:
            scores.masked_fill_((self.p == 0) & ~scores.isfinite(), 0)
        return scores


def _softmax(z: Tensor) -> tuple[Tensor, Tensor]:
    """Probabilities and their logarithms, without a second exponential: at the largest logit both are known."""
    p = z.softmax(-1)
    return p, (z - z.amax(-1, keepdim=True)).add_(p.amax(-1, keepdim=True).log_())


def _mean(values: Tensor) -> Tensor:
    """Mean over passes; adding slice by slice is several times faster than a reduction over so short an axis."""
    total = values[0] + values[1] if len(values) > 1 else values[0].clone()
    for value in values[2:]:
        total += value
    return total.div_(len(values))


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """Sum of products over the last axis."""
    product: Tensor = torch.linalg.vecdot(a, b)
    return product


def _chunks(
    positions: torch.Size, stacked: Sequence[Tensor], single: Sequence[Tensor | None]
) -> Iterator[tuple[list[Tensor], list[Any]]]:
    """Cut tensors into chunks of rows, as views, whatever their strides.

    `stacked` have a pass axis before the `positions`, `single` have not. Axes of positions that cannot be merged into
    one axis of rows without a copy are walked over one index at a time.
    """
    try:
        stacked = [_merge(x, 1, len(positions)) for x in stacked]
        single = [None if x is None else _merge(x, 0, len(positions)) for x in single]
    except RuntimeError:
        for i in range(positions[0]):
            inner = [x[:, i] for x in stacked], [None if x is None else x[i] for x in single]
            yield from _chunks(positions[1:], *inner)
        return
    logits = stacked[0]
    per_row = len(logits) * (math.prod(logits.shape[2:]) or 1)
    size = max(1, CHUNK.get(logits.device.type, CHUNK["cuda"]) // per_row)
    for start in range(0, logits.shape[1], size):
        part = slice(start, start + size)
        yield [x[:, part] for x in stacked], [None if x is None else x[part] for x in single]


def _merge(x: Tensor, start: int, count: int) -> Tensor:
    """Merge `count` axes from `start` on into one, as a view; raises RuntimeError where the strides do not allow it."""
    if count == 1:
        return x
    return x.view(*x.shape[:start], math.prod(x.shape[start : start + count]), *x.shape[start + count :])


def _in_huge_pages(x: Tensor) -> Tensor:
    """Ask Linux to back fresh memory with huge pages: most of the cost of writing it first is the page faults."""
    size = x.numel() * x.element_size()
    if x.device.type == "cpu" and sys.platform == "linux" and size >= 1 << 23:
        start = -(-x.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
        end = (x.data_ptr() + size) // mmap.PAGESIZE * mmap.PAGESIZE
        _madvise()(ctypes.c_void_p(start), ctypes.c_size_t(end - start), mmap.MADV_HUGEPAGE)
    return x


@functools.cache
def _madvise() -> Any:
    return ctypes.CDLL(None).madvise
