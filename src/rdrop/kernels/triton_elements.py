"""The kinds without a class axis in Triton: independent labels, and values. One program has a block of positions.

The formulas are those of `rdrop.divergences`, for two classes or for values, with their derivatives.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from rdrop.kernels.inputs import Inputs
from rdrop.kernels.triton_rows import JS, MSE, SYMMETRIC_KL


@triton.jit
def _elements(
    z_ptr, labels_ptr, keep_ptr, task_ptr, distance_ptr, g_ptr, n, smoothing,
    M: tl.constexpr, MP: tl.constexpr, BLOCK: tl.constexpr, DIVERGENCE: tl.constexpr, BINARY: tl.constexpr,
    LABELS: tl.constexpr, KEEP: tl.constexpr, MOVES: tl.constexpr, GRADIENT: tl.constexpr,
):  # fmt: skip
    """Both terms of a block of positions without a class axis; or the gradient, given those of both terms.

    A binary logit z is the pair of logits (z, 0), and a regression has values in place of logits.
    """
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < n
    k = tl.arange(0, MP)[:, None]
    there = (k < M) & inside[None, :]
    where = k.to(tl.int64) * n + at[None, :]
    counts = inside
    if KEEP:
        counts = inside & (tl.load(keep_ptr + at, mask=inside, other=0) != 0)
    z = tl.load(z_ptr + where, mask=there & counts[None, :], other=0.0).to(tl.float32)
    y = tl.zeros([BLOCK], tl.float32)
    if LABELS:
        y = tl.load(labels_ptr + at, mask=counts, other=0.0)
        if BINARY:
            y = (1.0 - smoothing) * y + 0.5 * smoothing
    moves = (((MOVES >> k) & 1) != 0) & (k < M)
    if BINARY:
        small = tl.exp(-tl.abs(z))
        # log(1 + x): what rounding does to 1 + x, it does to the divisor as well (Kahan).
        more = 1.0 + small
        rest = tl.where(more == 1.0, small, tl.log(more) * (small / tl.where(more == 1.0, 1.0, more - 1.0)))
        yes, no = tl.minimum(z, 0.0) - rest, -tl.maximum(z, 0.0) - rest
        p = tl.where(z >= 0, 1.0, small) / (1.0 + small)
        q = tl.where(z >= 0, small, 1.0) / (1.0 + small)
        target = y[None, :]
        cross_entropy = -(
            tl.where(target == 0.0, 0.0, target * yes) + tl.where(target == 1.0, 0.0, (1.0 - target) * no)
        )
        task = tl.sum(tl.where(there, cross_entropy, 0.0), 0) / M
        slope = p - y[None, :]
    else:
        task = tl.sum(tl.where(there, (z - y[None, :]) * (z - y[None, :]), 0.0), 0) / M
        slope = 2.0 * (z - y[None, :])
    distance = tl.zeros([BLOCK], tl.float32)
    tie = tl.zeros([MP, BLOCK], tl.float32)
    if M > 1 and not BINARY:
        apart = tl.where(there, z - (tl.sum(tl.where(there, z, 0.0), 0) / M)[None, :], 0.0)
        distance = tl.sum(apart * apart, 0) * (2.0 / (M - 1))
        tie = apart * (4.0 / (M - 1))
    if M > 1 and BINARY:
        p_mean = (tl.sum(tl.where(there, p, 0.0), 0) / M)[None, :]
        if DIVERGENCE == MSE:
            apart = tl.where(there, p - p_mean, 0.0)
            distance = tl.sum(apart * apart, 0) * (4.0 / (M - 1))
            tie = apart * p * q * (8.0 / (M - 1))
        elif DIVERGENCE == JS:
            q_mean = (tl.sum(tl.where(there, q, 0.0), 0) / M)[None, :]
            s_yes, s_no = yes - tl.log(p_mean), no - tl.log(q_mean)
            distance = tl.sum(tl.where(there, p * s_yes + q * s_no, 0.0), 0) / M
            tie = p * q * (s_yes - s_no) / M
        elif DIVERGENCE == SYMMETRIC_KL:
            # The scores of yes and no differ by that of the logits.
            apart = z - (tl.sum(tl.where(there, z, 0.0), 0) / M)[None, :]
            apart = tl.where(apart == apart, apart, 0.0)  # infinity - infinity
            distance = tl.sum(tl.where(there, (p - p_mean) * apart, 0.0), 0) / (M - 1)
            tie = (p * q * apart + p - p_mean) / (M - 1)
        else:
            first = k == 0
            z_first = tl.sum(tl.where(first, z, 0.0), 0)[None, :]
            p_first = tl.sum(tl.where(first, p, 0.0), 0)[None, :]
            q_first = tl.sum(tl.where(first, q, 0.0), 0)[None, :]
            yes_first = tl.sum(tl.where(first, yes, 0.0), 0)[None, :]
            no_first = tl.sum(tl.where(first, no, 0.0), 0)[None, :]
            others = there & (k > 0)
            each = p_first * (yes_first - yes) + q_first * (no_first - no)
            distance = tl.sum(tl.where(others, each, 0.0), 0) / (M - 1)
            away = tl.sum(tl.where(others, z_first - z, 0.0), 0)[None, :]
            tie = tl.where(first, p * q * away, p - p_first) / (M - 1)
    if GRADIENT:
        task_rate = tl.load(task_ptr + at, mask=inside, other=0.0)[None, :]
        distance_rate = tl.load(distance_ptr + at, mask=inside, other=0.0)[None, :]
        g = tl.where(moves, tie, 0.0) * distance_rate
        if LABELS:
            g += slope * task_rate / M
        g = tl.where(counts[None, :], g, 0.0)
        tl.store(g_ptr + where, g.to(g_ptr.dtype.element_ty), mask=there)
    else:
        tl.store(task_ptr + at, tl.where(counts & LABELS, task, 0.0), mask=inside)
        tl.store(distance_ptr + at, tl.where(counts, distance, 0.0), mask=inside)


def kept_per_position(passes: int) -> int:  # noqa: ARG001
    """The gradient needs to know nothing that is not in the logits."""
    return 0


def measure(inputs: Inputs) -> tuple[Tensor, Tensor, Tensor]:
    """Both terms of each position."""
    logits = inputs.logits
    task, distance = (logits.new_empty(logits.shape[1:], dtype=torch.float32) for _ in range(2))
    _run(inputs, task, distance, None)
    return task, distance, task.new_empty((*task.shape, 0))


def write_gradient(
    inputs: Inputs,
    kept: Tensor,  # noqa: ARG001
    task: Tensor,
    distance: Tensor,
    out: Tensor,
) -> None:
    """The gradient of the logits, given those of both terms."""
    dense = out.contiguous()
    _run(inputs, task.contiguous(), distance.contiguous(), dense)
    if dense is not out:
        out.copy_(dense)


def _run(inputs: Inputs, task: Tensor, distance: Tensor, gradient: Tensor | None) -> None:
    """Write both terms, or read them as gradients where `gradient` is written."""
    logits, target, mask = inputs.logits.contiguous(), inputs.target, inputs.mask
    n, M = task.numel(), len(logits)
    if n == 0:
        return
    MP = triton.next_power_of_2(M)
    block = max(1024 // MP, 16)
    _elements[(triton.cdiv(n, block),)](
        logits,
        logits if target is None else target,
        logits if mask is None else mask.view(torch.uint8),
        task,
        distance,
        logits if gradient is None else gradient,
        n,
        inputs.objective.label_smoothing,
        M=M,
        MP=MP,
        BLOCK=block,
        DIVERGENCE=inputs.divergence,
        BINARY=inputs.objective.kind == "binary",
        LABELS=target is not None,
        KEEP=mask is not None,
        MOVES=inputs.moves,
        GRADIENT=gradient is not None,
    )
