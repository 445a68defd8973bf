"""The objective in float64 NumPy, pair by pair, as plainly as it can be written. Shares no code with the package."""

from __future__ import annotations

from itertools import combinations, permutations
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


def objective(
    logits: Array,
    labels: Array | None,
    *,
    alpha: float = 1.0,
    kind: str = "categorical",
    ignore_index: int | None = -100,
    mask: Array | None = None,
    class_weight: Array | None = None,
    label_smoothing: float = 0.0,
    reduction: str = "mean",
    normalizer: float | None = None,
    divergence: str = "symmetric_kl",
) -> tuple[Array, Array, Array]:
    """Loss, task loss and divergence; arguments as for `rdrop.rdrop_loss`."""
    logits = np.asarray(logits, dtype=np.float64)
    passes = len(logits)
    positions = logits.shape[1:-1] if kind == "categorical" else logits.shape[1:]
    task, distance = np.zeros(positions), np.zeros(positions)
    counts = np.zeros(positions, dtype=bool)
    soft = kind == "categorical" and labels is not None and labels.ndim == logits.ndim - 1
    for at in np.ndindex(*positions):
        counted = mask is None or bool(mask[at])
        if labels is not None and not soft and ignore_index is not None and labels[at] == ignore_index:
            counted = False
        counts[at] = counted
        if not counted:
            continue
        scores = [logits[(k, *at)] for k in range(passes)]
        if kind == "regression":
            if labels is not None:
                task[at] = np.mean([(s - labels[at]) ** 2 for s in scores])
            distance[at] = mean_over([(a - b) ** 2 for a, b in combinations(scores, 2)])
            continue
        if kind == "binary":
            answers = [np.array([sigmoid(s), sigmoid(-s)]) for s in scores]
        else:
            answers = [softmax(s) for s in scores]
        distance[at] = distances(answers, divergence)
        if labels is None:
            continue
        if kind == "binary":
            target = np.array([labels[at], 1 - labels[at]], dtype=np.float64)
        else:
            target = labels[at].astype(np.float64) if soft else np.eye(len(answers[0]))[int(labels[at])]
        if label_smoothing:
            possible = np.all([p > 0 for p in answers], axis=0)
            target = (1 - label_smoothing) * target + label_smoothing * possible / possible.sum()
        if class_weight is not None:
            target = target * (class_weight[at[-1]] if kind == "binary" else class_weight)
        task[at] = np.mean(
            [sum(-t * np.log(p) for t, p in zip(target, answer, strict=True) if t) for answer in answers]
        )
    if reduction == "none":
        return task + alpha * distance, task, distance
    divisor = 1.0 if reduction == "sum" else (max(int(counts.sum()), 1) if normalizer is None else normalizer)
    t, d = task.sum() / divisor, distance.sum() / divisor
    return np.asarray(t + alpha * d), np.asarray(t), np.asarray(d)


def distances(answers: list[Array], divergence: str) -> float:
    """The divergence of a list of distributions, from the definition."""
    if len(answers) == 1:
        return 0.0
    if divergence == "symmetric_kl":
        return mean_over([kl(p, q) for p, q in permutations(answers, 2)])
    if divergence == "kl":
        return mean_over([kl(answers[0], q) for q in answers[1:]])
    if divergence == "js":
        middle = np.mean(answers, axis=0)
        return mean_over([kl(p, middle) for p in answers])
    return mean_over([float(((p - q) ** 2).sum()) for p, q in combinations(answers, 2)])


def kl(p: Array, q: Array) -> float:
    """KL(p || q) with 0 log 0 = 0."""
    with np.errstate(divide="ignore"):
        return float(sum(a * (np.log(a) - np.log(b)) for a, b in zip(p, q, strict=True) if a > 0))


def softmax(scores: Array) -> Array:
    """Softmax of one row."""
    e = np.exp(scores - scores.max())
    return np.asarray(e / e.sum())


def sigmoid(score: float) -> float:
    """1 / (1 + exp(-score))."""
    return float(np.exp(-np.logaddexp(0, -score)))


def mean_over(values: list[float]) -> float:
    """Mean, and 0 of nothing."""
    return float(np.mean(values)) if values else 0.0


def gradient(function: Any, at: Array, step: float = 1e-6) -> Array:
    """Central differences of a scalar function; entries of minus infinity are left at 0."""
    out = np.zeros_like(at)
    for index in np.ndindex(*at.shape):
        if not np.isfinite(at[index]):
            continue
        up, down = at.copy(), at.copy()
        up[index] += step
        down[index] -= step
        out[index] = (function(up) - function(down)) / (2 * step)
    return out
