"""The rows in Triton, on a GPU: forward reads the logits once, backward reads them again and writes the gradient.

One program has one row, the logits of its M passes at a position, and walks over its classes in tiles `(M, BLOCK)`; the
sums are rescaled when a larger logit comes. `js` and `mse` are not linear in the logits and take a second walk, which
finds a part of the row in the cache.

The formulas are those of `rdrop.kernels.fused`; sums run in float32. With TRITON_INTERPRET=1 the same programs run on a
CPU, for tests.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from rdrop.kernels.inputs import Inputs, Rows, rows_of

SYMMETRIC_KL, KL, JS, MSE = (tl.constexpr(i) for i in range(4))
LARGEST_TILE = 8192
"""Logits that a program holds at a time."""
_KEPT_PER_PASS = tl.constexpr(4)  # largest logit, sum of exponentials, base of the scores, mean score


@triton.jit
def _tile(
    z_ptr, pass_stride, class_stride, start, C: tl.constexpr, M: tl.constexpr, MP: tl.constexpr, BLOCK: tl.constexpr
):
    """Logits `(MP, BLOCK)` from class `start` on; beyond M and C stand impossible classes."""
    k = tl.arange(0, MP)[:, None]
    c = start + tl.arange(0, BLOCK)[None, :]
    at = z_ptr + k.to(tl.int64) * pass_stride + c.to(tl.int64) * class_stride
    return tl.load(at, mask=(k < M) & (c < C), other=-float("inf")).to(tl.float32)


@triton.jit
def _linear_scores(z, e, base, M: tl.constexpr, MP: tl.constexpr, DIVERGENCE: tl.constexpr):
    """Scores of the divergences that are linear in the logits, from differences between the passes; 0 where e is."""
    k = tl.arange(0, MP)[:, None]
    x = z - base[:, None]
    first = tl.sum(tl.where(k == 0, x, 0.0), 0)[None, :]
    apart = tl.where((k > 0) & (k < M), x - first, 0.0)
    centre = tl.sum(apart, 0)[None, :] / (M - 1 if DIVERGENCE == KL else M)
    s = apart - centre
    # Infinity - infinity: a class that is impossible in the first pass and possible in this one.
    s = tl.where(s == s, s, float("inf"))
    return tl.where(e == 0.0, 0.0, s)


@triton.jit
def _other_scores(log_p, p, M: tl.constexpr, MP: tl.constexpr, DIVERGENCE: tl.constexpr):
    """Scores of the others, from log-probabilities and probabilities, which are -inf and 0 beyond M."""
    k = tl.arange(0, MP)[:, None]
    if DIVERGENCE == JS:
        high = tl.max(log_p, 0)[None, :]
        centre = high + tl.log(tl.sum(tl.exp(log_p - high), 0) / M)[None, :]
        return tl.where(p == 0.0, 0.0, log_p - centre)
    return tl.where(k < M, p - (tl.sum(p, 0) / M)[None, :], 0.0)


@triton.jit
def _class_weights(weight_ptr, c, C: tl.constexpr, WEIGHT: tl.constexpr):
    """Weights of classes in the task loss."""
    if WEIGHT:
        return tl.load(weight_ptr + c, mask=c < C, other=0.0)
    return tl.full(c.shape, 1.0, tl.float32)


@triton.jit
def _measure(
    z_ptr, pass_stride, outer_stride, inner_stride, class_stride, inner,
    labels_ptr, soft_ptr, keep_ptr, weight_ptr, kept_ptr, task_ptr, distance_ptr, smoothing,
    C: tl.constexpr, M: tl.constexpr, MP: tl.constexpr, BLOCK: tl.constexpr, DIVERGENCE: tl.constexpr,
    IDS: tl.constexpr, SOFT: tl.constexpr, KEEP: tl.constexpr, WEIGHT: tl.constexpr, SMOOTH: tl.constexpr,
):  # fmt: skip
    """Both terms of a row, and what the gradient needs to know."""
    row = tl.program_id(0).to(tl.int64)
    k = tl.arange(0, MP)
    there = k < M
    kept_ptr += row * (_KEPT_PER_PASS * M + 2)
    if KEEP:
        if tl.load(keep_ptr + row) == 0:
            tl.store(task_ptr + row, 0.0)
            tl.store(distance_ptr + row, 0.0)
            for part in range(_KEPT_PER_PASS):
                tl.store(kept_ptr + part * M + k, tl.zeros([MP], tl.float32), mask=there)
            tl.store(kept_ptr + _KEPT_PER_PASS * M, 0.0)
            tl.store(kept_ptr + _KEPT_PER_PASS * M + 1, 0.0)
            return
    z_ptr += row // inner * outer_stride + row % inner * inner_stride
    LINEAR: tl.constexpr = DIVERGENCE == SYMMETRIC_KL or DIVERGENCE == KL
    base = tl.max(_tile(z_ptr, pass_stride, class_stride, 0, C, M, MP, BLOCK), 1)
    base = tl.where(base > -float("inf"), base, 0.0)
    top = tl.full([MP], -float("inf"), tl.float32)
    total = tl.zeros([MP], tl.float32)
    score = tl.zeros([MP], tl.float32)
    open_count, open_weight, open_log, soft_weight, soft_log = 0.0, 0.0, 0.0, 0.0, 0.0
    for start in range(0, C, BLOCK):
        z = _tile(z_ptr, pass_stride, class_stride, start, C, M, MP, BLOCK)
        higher = tl.maximum(top, tl.max(z, 1))
        shift = tl.where(higher == -float("inf"), 0.0, higher)
        e = tl.exp(z - shift[:, None])
        shrink = tl.exp(top - shift)
        top = higher
        total = total * shrink + tl.sum(e, 1)
        if M > 1 and LINEAR:
            score = score * shrink + tl.sum(e * _linear_scores(z, e, base, M, MP, DIVERGENCE), 1)
        if SOFT or SMOOTH:
            c = start + tl.arange(0, BLOCK)
            weight = _class_weights(weight_ptr, c, C, WEIGHT)
            possible = tl.min(tl.where(there[:, None], z, float("inf")), 0) > -float("inf")
            mean = tl.sum(tl.where(there[:, None], z - base[:, None], 0.0), 0) / M
            open_count += tl.sum(tl.where(possible, 1.0, 0.0), 0)
            open_weight += tl.sum(tl.where(possible, weight, 0.0), 0)
            open_log += tl.sum(tl.where(possible, weight * mean, 0.0), 0)
            if SOFT:
                target = weight * tl.load(soft_ptr + row * C + c, mask=c < C, other=0.0)
                soft_weight += tl.sum(target, 0)
                soft_log += tl.sum(tl.where(target != 0.0, target * mean, 0.0), 0)
    score = score / total
    log_total = tl.where(there, top - base + tl.log(total), 0.0)
    mean_log_total = tl.sum(log_total, 0) / M
    distance = 0.0
    if M > 1 and not LINEAR:
        for start in range(0, C, BLOCK):
            z = _tile(z_ptr, pass_stride, class_stride, start, C, M, MP, BLOCK)
            log_p = tl.where(there[:, None], z - base[:, None] - log_total[:, None], -float("inf"))
            p = tl.exp(log_p)
            s = _other_scores(log_p, p, M, MP, DIVERGENCE)
            score += tl.sum(p * s, 1)
            distance += tl.sum(tl.sum(s * s, 1), 0) * (2.0 / (M - 1))
    if M > 1 and DIVERGENCE != MSE:
        distance = tl.sum(tl.where(there, score, 0.0), 0) / (M if DIVERGENCE == JS else M - 1)
    if M > 1 and DIVERGENCE == KL:
        first = k == 0
        lead = tl.sum(tl.where(first, log_total, 0.0), 0) - mean_log_total
        distance = tl.sum(tl.where(first, score, 0.0), 0) - lead * (M / (M - 1))
    task, mass, share = 0.0, 0.0, 0.0
    if IDS or SOFT:
        if IDS:
            label = tl.load(labels_ptr + row)
            valid = (label >= 0) & (label < C)
            label = tl.where(valid, label, 0)
            soft_weight = tl.load(weight_ptr + label) if WEIGHT else 1.0
            at = z_ptr + k.to(tl.int64) * pass_stride + label * class_stride
            answer = tl.load(at, mask=there, other=0.0).to(tl.float32) - base
            soft_log = tl.sum(tl.where(there, answer, 0.0), 0) / M - mean_log_total
            # A label that is no class must not go unnoticed, and the host does not wait to look.
            soft_log = tl.where(valid, soft_weight * soft_log, float("nan"))
            soft_weight = tl.where(valid, soft_weight, float("nan"))
        else:
            soft_log -= soft_weight * mean_log_total
        hard = 1.0 - smoothing
        if SMOOTH:
            share = smoothing / tl.maximum(open_count, 1.0)
            open_log -= open_weight * mean_log_total
        mass = hard * soft_weight + share * open_weight
        task = -(tl.where(hard * soft_weight == 0.0, 0.0, hard * soft_log) + share * open_log)
    tl.store(task_ptr + row, task)
    tl.store(distance_ptr + row, distance)
    tl.store(kept_ptr + k, top, mask=there)
    tl.store(kept_ptr + M + k, total, mask=there)
    tl.store(kept_ptr + 2 * M + k, base, mask=there)
    tl.store(kept_ptr + 3 * M + k, score, mask=there)
    tl.store(kept_ptr + _KEPT_PER_PASS * M, mass)
    tl.store(kept_ptr + _KEPT_PER_PASS * M + 1, share)


@triton.jit
def _write_gradient(
    z_ptr, pass_stride, outer_stride, inner_stride, class_stride, inner,
    g_ptr, g_pass_stride, g_outer_stride, g_inner_stride, g_class_stride, g_inner,
    labels_ptr, soft_ptr, keep_ptr, weight_ptr, kept_ptr, task_ptr, distance_ptr, smoothing,
    C: tl.constexpr, M: tl.constexpr, MP: tl.constexpr, BLOCK: tl.constexpr, DIVERGENCE: tl.constexpr,
    IDS: tl.constexpr, SOFT: tl.constexpr, KEEP: tl.constexpr, WEIGHT: tl.constexpr, SMOOTH: tl.constexpr,
    MOVES: tl.constexpr,
):  # fmt: skip
    """The gradient of a row, given those of both terms; it may overwrite the logits."""
    row = tl.program_id(0).to(tl.int64)
    z_ptr += row // inner * outer_stride + row % inner * inner_stride
    g_ptr += row // g_inner * g_outer_stride + row % g_inner * g_inner_stride
    LINEAR: tl.constexpr = DIVERGENCE == SYMMETRIC_KL or DIVERGENCE == KL
    k = tl.arange(0, MP)
    there = k < M
    counts = True
    if KEEP:
        counts = tl.load(keep_ptr + row) != 0
    if not counts:
        for start in range(0, C, BLOCK):
            c = start + tl.arange(0, BLOCK)[None, :]
            to = g_ptr + k[:, None].to(tl.int64) * g_pass_stride + c.to(tl.int64) * g_class_stride
            tl.store(to, tl.zeros([MP, BLOCK], g_ptr.dtype.element_ty), mask=there[:, None] & (c < C))
        return
    kept_ptr += row * (_KEPT_PER_PASS * M + 2)
    top = tl.load(kept_ptr + k, mask=there, other=0.0)[:, None]
    total = tl.load(kept_ptr + M + k, mask=there, other=1.0)[:, None]
    base = tl.load(kept_ptr + 2 * M + k, mask=there, other=0.0)
    score = tl.load(kept_ptr + 3 * M + k, mask=there, other=0.0)[:, None]
    mass = tl.load(kept_ptr + _KEPT_PER_PASS * M)
    share = tl.load(kept_ptr + _KEPT_PER_PASS * M + 1)
    task_rate = tl.load(task_ptr + row) / M
    distance_rate = tl.load(distance_ptr + row)
    # c and w of the formula, for each pass.
    moves = ((MOVES >> k) & 1) != 0
    if DIVERGENCE == SYMMETRIC_KL:
        bend = tl.where(moves, 1.0 / max(M - 1, 1), 0.0)
        pull = bend
    elif DIVERGENCE == KL:
        bend = tl.where(moves & (k == 0), 1.0, 0.0)
        pull = tl.where(moves & (k > 0), 1.0 / max(M - 1, 1), 0.0)
    elif DIVERGENCE == JS:
        bend = tl.where(moves, 1.0 / M, 0.0)
        pull = tl.zeros([MP], tl.float32)
    else:
        bend = tl.where(moves, 4.0 / max(M - 1, 1), 0.0)
        pull = tl.zeros([MP], tl.float32)
    for start in range(0, C, BLOCK):
        z = _tile(z_ptr, pass_stride, class_stride, start, C, M, MP, BLOCK)
        c = start + tl.arange(0, BLOCK)
        e = tl.exp(z - top)
        p = e / total
        g = tl.zeros([MP, BLOCK], tl.float32)
        if IDS or SOFT:
            target = tl.zeros([BLOCK], tl.float32)
            weight = _class_weights(weight_ptr, c, C, WEIGHT)
            if SMOOTH:
                possible = tl.min(tl.where(there[:, None], z, float("inf")), 0) > -float("inf")
                target += tl.where(possible, share, 0.0)
            if SOFT:
                target += (1.0 - smoothing) * tl.load(soft_ptr + row * C + c, mask=c < C, other=0.0)
            if IDS:
                target += tl.where(c == tl.load(labels_ptr + row), 1.0 - smoothing, 0.0)
            g += task_rate * (mass * p - (target * weight)[None, :])
        if M > 1:
            if LINEAR:
                s = _linear_scores(z, e, base, M, MP, DIVERGENCE)
            else:
                log_p = tl.where(there[:, None], z - top - tl.log(total), -float("inf"))
                s = _other_scores(log_p, p, M, MP, DIVERGENCE)
            g += distance_rate * bend[:, None] * p * (s - score)
            if LINEAR:
                if DIVERGENCE == KL:
                    anchor = tl.sum(tl.where(k[:, None] == 0, p, 0.0), 0)
                else:
                    anchor = tl.sum(p, 0) / M
                g += distance_rate * pull[:, None] * (p - anchor[None, :])
        to = g_ptr + k[:, None].to(tl.int64) * g_pass_stride + c[None, :].to(tl.int64) * g_class_stride
        tl.store(to, g.to(g_ptr.dtype.element_ty), mask=there[:, None] & (c[None, :] < C))


def kept_per_position(passes: int) -> int:
    """Four numbers of each pass, and two of the labels."""
    return _KEPT_PER_PASS.value * passes + 2  # type: ignore[no-any-return]


def measure(inputs: Inputs) -> tuple[Tensor, Tensor, Tensor]:
    """Both terms of each position, and what the gradient needs to know."""
    logits = inputs.logits
    task, distance = (logits.new_empty(logits.shape[1:-1], dtype=torch.float32) for _ in range(2))
    kept = logits.new_empty((*task.shape, kept_per_position(len(logits))), dtype=torch.float32)
    if task.numel():
        rows, arrays, constants = _arguments(inputs)
        smoothing = inputs.objective.label_smoothing
        _measure[(task.numel(),)](*rows, *arrays, kept, task, distance, smoothing, **constants)
    return task, distance, kept


def write_gradient(inputs: Inputs, kept: Tensor, task: Tensor, distance: Tensor, out: Tensor) -> None:
    """The gradient of the logits, given those of both terms."""
    if n := task.numel():
        rows, arrays, constants = _arguments(inputs)
        to, terms = _strided(rows_of(out)), (task.contiguous(), distance.contiguous())
        smoothing = inputs.objective.label_smoothing
        _write_gradient[(n,)](*rows, *to, *arrays, kept, *terms, smoothing, MOVES=inputs.moves, **constants)
        if to[0] is not out:
            out.copy_(to[0])


def _strided(rows: Rows) -> tuple[Tensor, int, int, int, int, int]:
    """Logits, the strides of passes, rows and classes, and the length of the inner axis of rows."""
    logits, _, inner, outer_stride, inner_stride = rows
    return logits, logits.stride(0), outer_stride, inner_stride, logits.stride(-1), inner


def _arguments(inputs: Inputs) -> tuple[tuple[Any, ...], list[Tensor], dict[str, Any]]:
    """The rows; ids, soft labels, mask and weights, with the logits in place of what is missing; the constants."""
    rows = _strided(rows_of(inputs.logits))
    logits, ids, target, mask, weight = rows[0], inputs.ids, inputs.target, inputs.mask, inputs.weight
    M, C = len(logits), logits.shape[-1]
    MP = triton.next_power_of_2(M)
    block = min(triton.next_power_of_2(C), max(LARGEST_TILE // MP, 16))
    given = ids, target, None if mask is None else mask.view(torch.uint8), weight
    constants = {
        "C": C,
        "M": M,
        "MP": MP,
        "BLOCK": block,
        "DIVERGENCE": inputs.divergence,
        "IDS": ids is not None,
        "SOFT": target is not None,
        "KEEP": mask is not None,
        "WEIGHT": weight is not None,
        "SMOOTH": inputs.objective.label_smoothing > 0,
        "num_warps": 8 if MP * block >= 4096 else 4,
    }
    return rows, [logits if array is None else array for array in given], constants
