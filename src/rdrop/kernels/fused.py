"""Closed-form gradients in row chunks: no full-size temporary besides the gradient of the logits.

The rows are walked over in chunks small enough to stay in the processor's cache. With p_k = softmax of pass k, u the
target weights of a row, and row gradients `task` and `distance` from above, the gradient of pass k is

    task / M * (sum(u) p_k - u)  +  distance * ( c_k p_k (s_k - E_{p_k}[s_k]) + w_k (p_k - anchor) )

where the scores s, the anchor and the weights c, w belong to the divergence (`_Chunk.slope`). For two passes and the
symmetric Kullback-Leibler divergence this is the gradient that follows from eq. 2 and 4 of the paper.

The gradient may take the place of the logits: a chunk is read before it is written.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rdrop.divergences import squared_difference, two_classes
from rdrop.kernels.inputs import Inputs
from rdrop.options import Objective
from rdrop.task_losses import cross_entropy, soft_targets, squared_error

CHUNK = {"cpu": 1 << 20, "cuda": 1 << 25}
"""Logits in a chunk: what stays in a CPU's cache; on a GPU, what keeps it busy."""


def kept_per_position(passes: int) -> int:  # noqa: ARG001
    """The gradient needs to know nothing that is not in the logits."""
    return 0


def measure(inputs: Inputs) -> tuple[Tensor, Tensor, Tensor]:
    """Both terms of each position."""
    task, distance = _walk(inputs, None, None)
    return task, distance, task.new_empty((*task.shape, 0))


def measure_and_write(inputs: Inputs, foretold: tuple[float, float], out: Tensor) -> tuple[Tensor, Tensor]:
    """Both terms of each position, and the gradient of the logits, each chunk while it is in the cache."""
    return _walk(inputs, foretold, out)


def write_gradient(
    inputs: Inputs,
    kept: Tensor,  # noqa: ARG001
    task: Tensor,
    distance: Tensor,
    out: Tensor,
) -> None:
    """The gradient of the logits, given those of both terms."""
    logits, labels, keep, class_weight, objective = inputs
    memory = _Memory(torch.promote_types(logits.dtype, torch.float32), logits.device)
    for (z, g), (y, k, t, d) in _chunks(task.shape, (logits, out), (labels, keep, task, distance)):
        _Chunk(z, y, k, class_weight, objective, memory).write_gradient(t, d, g)


def _walk(inputs: Inputs, foretold: tuple[float, float] | None, out: Tensor | None) -> tuple[Tensor, Tensor]:
    """Both terms of each position, and for foretold gradients of the terms that of the logits."""
    logits, labels, keep, class_weight, objective = inputs
    dtype = torch.promote_types(logits.dtype, torch.float32)
    positions = logits.shape[1:-1] if objective.kind == "categorical" else logits.shape[1:]
    task, distance = (logits.new_zeros(positions, dtype=dtype) for _ in range(2))
    memory = _Memory(dtype, logits.device)
    for (z, g), (y, k, t, d) in _chunks(positions, (logits, out), (labels, keep, task, distance)):
        chunk = _Chunk(z, y, k, class_weight, objective, memory)
        for term, values in ((t, chunk.task_loss()), (d, chunk.divergence())):
            if values is not None:
                term.copy_(values if k is None else torch.where(k, values, 0))
        if foretold is not None:
            expected = t.new_tensor(foretold).unsqueeze(-1).expand(2, len(t))
            chunk.write_gradient(expected[0], expected[1], g)
    return task, distance


class _Memory:
    """Buffers that all chunks of a call share: memory that is asked for anew each time costs page faults."""

    def __init__(self, dtype: torch.dtype, device: torch.device) -> None:
        self.dtype, self.device = dtype, device
        self.buffers: dict[str, Tensor] = {}

    def take(self, name: str, shape: Sequence[int]) -> Tensor:
        """The buffer of this name, at least as large as in any chunk before."""
        size = math.prod(shape)
        if name not in self.buffers or self.buffers[name].numel() < size:
            self.buffers[name] = torch.empty(size, dtype=self.dtype, device=self.device)
        return self.buffers[name][:size].view(shape)


class _Tie(NamedTuple):
    """A divergence, `(R)`, and by pass the parts of its gradient c p (s - E_p[s]) + w (p - anchor)."""

    distance: Tensor
    scores: Sequence[Tensor]
    mean_scores: Sequence[Tensor]
    anchors: Sequence[Tensor]
    c: Sequence[float]
    w: Sequence[float]


class _Chunk:
    """A chunk of rows: logits `(M, R, C)`, labels `(R)` or `(R, C)`; `(M, R)` and `(R)` without a class axis."""

    def __init__(
        self,
        z: Tensor,
        labels: Tensor | None,
        keep: Tensor | None,
        class_weight: Tensor | None,
        objective: Objective,
        memory: _Memory,
    ) -> None:
        self.keep, self.objective, self.memory = keep, objective, memory
        self.passes = len(z)
        self.z = z if z.dtype == memory.dtype else memory.take("z", z.shape).copy_(z)
        self.index: Tensor | None = None  # class ids for gather and scatter, (M, R, 1)
        self.target: Tensor | None = None  # or the weight of every class, (R, C); or the values of a regression, (R)
        self.mass: Tensor | float = 0.0  # sum of the weights, (R, 1)
        if objective.kind == "regression":
            self.target = None if labels is None else labels.to(memory.dtype)
            return
        if objective.kind == "binary":
            self.z = two_classes(self.z)
            labels = None if labels is None else torch.stack((yes := labels.to(memory.dtype), 1 - yes), -1)
        self.p = memory.take("p", self.z.shape)
        for k in range(len(z)):  # a pass is contiguous where all of them together are not
            torch.softmax(self.z[k], -1, out=self.p[k])
        if labels is not None and not labels.is_floating_point() and not objective.label_smoothing:
            ids = (labels if keep is None else torch.where(keep, labels, 0)).long().unsqueeze(-1)
            self.index = ids.expand(self.passes, *ids.shape)
            weight = torch.ones_like(ids, dtype=memory.dtype) if class_weight is None else class_weight[ids]
            self.mass = weight.to(memory.dtype)
        elif labels is not None:
            self.target = soft_targets(labels, self.log_p, keep, objective.label_smoothing, class_weight)
            self.mass = self.target.sum(-1, keepdim=True)

    @cached_property
    def log_p(self) -> Tensor:
        """Log-probabilities `(M, R, C)`, without a second exponential: at the largest logit both z and p are known."""
        below = torch.sub(self.z, self.z.amax(-1, keepdim=True), out=self.memory.take("log_p", self.z.shape))
        return below.add_(self.p.amax(-1, keepdim=True).log_())

    def task_loss(self) -> Tensor | None:
        """Mean over passes of the task loss, `(R)`, or None without labels."""
        if self.index is not None:
            p = self.p.gather(-1, self.index)
            rounded_away = p.device.type != "cpu" or not (p > torch.finfo(p.dtype).tiny).all()
            log_p = self.log_p.gather(-1, self.index) if rounded_away else p.log_()
            return -(self.mass * log_p.mean(0)).squeeze(-1)
        if self.target is None:
            return None
        if self.objective.kind == "regression":
            return squared_error(self.z, self.target)
        return cross_entropy(self.log_p, self.target)

    def divergence(self) -> Tensor | None:
        """Divergence of the passes, `(R)`, or None for a single one."""
        if self.passes == 1:
            return None
        return squared_difference(self.z) if self.objective.kind == "regression" else self.tie.distance

    def write_gradient(self, task: Tensor, distance: Tensor, out: Tensor) -> None:
        """Write the gradient of the rows into `out` (the shape of the logits), given those of both terms, `(R)`."""
        objective, M = self.objective, self.passes
        moves = [M > 1 and objective.moves(k) for k in range(M)]
        if objective.kind == "regression":
            centre = self.z.mean(0)
            for k in range(M):
                g = 0 * task if self.target is None else 2 / M * task * (self.z[k] - self.target)
                out[k].copy_(g + 4 / (M - 1) * distance * (self.z[k] - centre) if moves[k] else g)
        else:
            task, distance = (task / M).unsqueeze(-1), distance.unsqueeze(-1)
            tie = self.tie if any(moves) else None
            g = self.memory.take("g", self.p.shape[1:])
            for k in range(M):
                c, w = (tie.c[k], tie.w[k]) if tie and moves[k] else (0.0, 0.0)
                rate = task * self.mass + w * distance
                if tie and c:
                    torch.sub(tie.scores[k], tie.mean_scores[k].unsqueeze(-1), out=g)
                    g.mul_(c * distance).add_(rate).mul_(self.p[k])
                else:
                    torch.mul(self.p[k], rate, out=g)
                if self.index is not None:
                    g.scatter_add_(-1, self.index[k], -task * self.mass)
                elif self.target is not None:
                    g.addcmul_(self.target, task, value=-1)
                if tie and w:
                    straight = out[k] if objective.kind == "categorical" else g  # without a copy, where shapes agree
                    torch.addcmul(g, tie.anchors[k], distance, value=-w, out=straight)
                if not w or objective.kind == "binary":
                    out[k].copy_(g[..., 0] if objective.kind == "binary" else g)
        if self.keep is not None:
            out.masked_fill_(~self.keep.unsqueeze(-1) if objective.kind == "categorical" else ~self.keep, 0)

    @cached_property
    def tie(self) -> _Tie:
        """The divergence and the parts of its gradient. Overwrites `log_p`."""
        p, M, take = self.p, self.passes, self.memory.take
        row, even, none = p.shape[1:], [1 / (M - 1)] * M, [0.0] * M
        if self.objective.divergence == "symmetric_kl" and M == 2:
            # The most common case has shortcuts: the scores are half the difference of the logits, up to their sign and
            # a constant of the row, and each distribution is the other one's anchor.
            score = torch.sub(self.z[0], self.z[1], out=take("centre", row))
            if self._finite(score):
                distance = self._dot(torch.sub(p[0], p[1], out=take("g", row)), score) / 2
                mean = self._dot(p[0], score)
                return _Tie(distance, [score] * 2, [mean, mean - 2 * distance], [p[1], p[0]], [0.5, -0.5], [0.5, 0.5])
        anchors, c, w = [_sum(p, take("anchor", row)).div_(M)] * M, even, none
        match self.objective.divergence:
            case "symmetric_kl":
                scores, w = self._centred(_sum(self.log_p, take("centre", row)).div_(M)), even
            case "kl":
                scores = self._centred(_sum(self.log_p[1:], take("centre", row)).div_(M - 1))
                anchors, c, w = [p[0]] * M, [1.0, *none[1:]], [0.0, *even[1:]]
            case "js":
                scores, c = self._centred(torch.logsumexp(self.log_p, 0).sub_(math.log(M))), [1 / M] * M
            case "mse":
                scores, c = torch.sub(p, anchors[0], out=take("log_p", p.shape)), [4 / (M - 1)] * M
                distance = self._dot(scores, scores).sum(0) * 2 / (M - 1)
                return _Tie(distance, scores.unbind(), self._dot(p, scores).unbind(), anchors, c, w)
        means = self._dot(p, scores)
        distance = torch.stack([ck * mean for ck, mean in zip(c, means, strict=True) if ck]).sum(0)
        if self.objective.divergence == "symmetric_kl":
            # The scores of a class sum to rounding errors over the passes. Without them this is the covariance of p
            # and log p, which keeps its digits where the passes nearly agree.
            error = even[0] * self._dot(anchors[0], _sum(scores, take("g", row)))
            distance -= torch.where(error.isfinite(), error, 0)
        return _Tie(distance, scores.unbind(), means.unbind(), anchors, c, w)

    def _centred(self, centre: Tensor) -> Tensor:
        """`log_p` - `centre` in place, and 0 where p is 0 and the difference is not finite."""
        scores = self.log_p.sub_(centre)
        if not self._finite(scores):
            scores.masked_fill_((self.p == 0) & ~scores.isfinite(), 0)
        return scores

    def _finite(self, values: Tensor) -> bool:
        """Whether all values are known to be finite: a sum is so only if all its terms are.

        That finds the rare chunk with impossible classes. On a GPU looking at a value would make the host wait.
        """
        return values.device.type == "cpu" and math.isfinite(values.sum().item())

    def _dot(self, a: Tensor, b: Tensor) -> Tensor:
        """Sum of products over the last axis."""
        return torch.mul(a, b, out=self.memory.take("product", a.shape)).sum(-1)


def _sum(values: Tensor, out: Tensor) -> Tensor:
    """Sum over passes; slice by slice is several times faster than a reduction over so short an axis."""
    torch.add(values[0], values[1], out=out) if len(values) > 1 else out.copy_(values[0])
    for value in values[2:]:
        out += value
    return out


def _chunks(
    positions: torch.Size, stacked: Sequence[Tensor | None], single: Sequence[Tensor | None]
) -> Iterator[tuple[list[Any], list[Any]]]:
    """Cut tensors into chunks of rows, as views, whatever their strides.

    `stacked` have a pass axis before the `positions`, `single` have not. Axes of positions that cannot be merged into
    one axis of rows without a copy are walked over one index at a time.
    """
    try:
        stacked = [_merge(x, 1, len(positions)) for x in stacked]
        single = [_merge(x, 0, len(positions)) for x in single]
    except RuntimeError:
        for i in range(positions[0]):
            inner = [x if x is None else x[:, i] for x in stacked], [x if x is None else x[i] for x in single]
            yield from _chunks(positions[1:], *inner)
        return
    logits = stacked[0]
    assert logits is not None
    per_row = len(logits) * (math.prod(logits.shape[2:]) or 1)
    size = max(1, CHUNK.get(logits.device.type, CHUNK["cuda"]) // per_row)
    for start in range(0, logits.shape[1], size):
        part = slice(start, start + size)
        yield [x if x is None else x[:, part] for x in stacked], [x if x is None else x[part] for x in single]


def _merge(x: Tensor | None, start: int, count: int) -> Tensor | None:
    """Merge `count` axes from `start` on into one, as a view; raises RuntimeError where the strides do not allow it."""
    if x is None or count == 1:
        return x
    return x.view(*x.shape[:start], math.prod(x.shape[start : start + count]), *x.shape[start + count :])
