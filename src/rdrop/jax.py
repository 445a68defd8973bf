"""R-Drop for JAX: the same objective as pure functions, under jit, grad, vmap, scan and sharding.

The numbers are those of `rdrop.rdrop_loss`, to rounding: one table of cases holds both to them. Nothing here needs
torch.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from rdrop.options import Divergence, Kind, Objective, Reduction, StopGradient, check_alpha, check_choice
from rdrop.shapes import check_class_ids, check_reduction, check_shapes, wrong_dtype

__all__ = ["RDropOutput", "divergence", "forward_passes", "rdrop_loss"]

Strategy = Literal["shared", "concat"]


class RDropOutput(NamedTuple):
    """The objective and its two terms."""

    loss: Array
    task_loss: Array
    divergence: Array


def rdrop_loss(
    logits: ArrayLike,
    labels: ArrayLike | None,
    *,
    alpha: ArrayLike = 1.0,
    kind: Kind = "categorical",
    ignore_index: int | None = -100,
    mask: ArrayLike | None = None,
    class_weight: ArrayLike | None = None,
    label_smoothing: float = 0.0,
    reduction: Reduction = "mean",
    normalizer: ArrayLike | None = None,
    divergence: Divergence = "symmetric_kl",
    stop_gradient: StopGradient | None = None,
) -> RDropOutput:
    """R-Drop's objective on the logits of M passes over one batch.

        task_loss  = mean_i  -log P_i(y)
        divergence = mean over ordered pairs i != j of KL(P_i || P_j)
        loss       = task_loss + alpha * divergence

    each a mean over the positions that count (Liang et al. 2021, arXiv 2106.14448, eq. 4; `rdrop.rdrop_loss` explains
    every option and the units of alpha). Softmax and sums run in float32, or in float64 for float64 logits.

    Args:
        logits: `(M, B, ..., C)`, M >= 1; `(M, B, ...)` for the binary and the regression kind. Classes whose logit is
            -inf are impossible.
        labels: Class ids `(B, ...)`, class probabilities `(B, ..., C)`, or None for unlabelled data.
        alpha: Weight of the divergence, at least 0; may be traced.
        kind: `categorical`, `binary` or `regression`.
        ignore_index: Positions with this label count in neither term; None: every label counts.
        mask: True at the positions that count, `(B, ...)`.
        class_weight: `(C,)`; for the binary kind one weight for each label.
        label_smoothing: In 0..1; task loss only.
        reduction: `mean` over the positions that count, `sum`, or `none` for `(B, ...)`.
        normalizer: Replaces the number of positions that `mean` divides by; may be traced.
        divergence: `symmetric_kl`, `kl`, `js` or `mse`.
        stop_gradient: Passes that are constants inside the divergence: none, the `first`, or the `rest`.

    Returns:
        `loss`, `task_loss` and `divergence`.

    Raises:
        ValueError: A shape or an option is out of place, or, outside of jit, a class id.
        TypeError: An array has the wrong kind of dtype.

    Examples:
        >>> import jax.numpy as jnp
        >>> from rdrop.jax import rdrop_loss
        >>> out = rdrop_loss(jnp.array([[[2.0, 0.0]], [[0.0, 0.0]]]), jnp.array([0]), alpha=1.0)
        >>> [round(float(term), 4) for term in out]
        [0.7908, 0.41, 0.3808]
    """
    z = jnp.asarray(logits)
    y, keep, weight = (None if each is None else jnp.asarray(each) for each in (labels, mask, class_weight))
    objective = Objective(kind, divergence, stop_gradient, label_smoothing)
    check_reduction(reduction, normalizer)
    if isinstance(alpha, int | float):
        check_alpha(alpha)
    _check(z, y, keep, weight, kind, ignore_index)
    z = z.astype(jnp.promote_types(z.dtype, jnp.float32))
    soft = kind == "categorical" and y is not None and jnp.issubdtype(y.dtype, jnp.floating)
    counts = jnp.ones(z.shape[1 : z.ndim - (kind == "categorical")], bool) if keep is None else keep.astype(bool)
    # Against an unsigned label a negative number would wrap around to a real one.
    if y is not None and not soft and ignore_index is not None and (ignore_index >= 0 or y.dtype.kind not in "ub"):
        counts = counts & (y != ignore_index)
    # What stands where nothing counts, be it nan, must not reach a gradient.
    z = jnp.where(counts[..., None] if kind == "categorical" else counts, z, 0)
    task, distance = _rows(z, y, counts, weight, objective)
    task, distance = jnp.where(counts, task, 0), jnp.where(counts, distance, 0)
    if reduction != "none":
        by: Any = 1.0
        if reduction == "mean" and normalizer is None:
            by = jnp.maximum(counts.sum(), 1)
        elif normalizer is not None:
            by = jnp.where(jnp.equal(normalizer, 0), 1, normalizer)
        task, distance = task.sum() / by, distance.sum() / by
    return RDropOutput(task + alpha * distance, task, distance)


def divergence(
    logits: ArrayLike,
    *,
    kind: Kind = "categorical",
    divergence: Divergence = "symmetric_kl",
    stop_gradient: StopGradient | None = None,
    mask: ArrayLike | None = None,
    reduction: Reduction = "mean",
    normalizer: ArrayLike | None = None,
) -> Array:
    """The divergence alone, beside a task loss of your own; the arguments are those of `rdrop_loss`.

    Examples:
        >>> round(float(divergence(jnp.array([[[2.0, 0.0]], [[0.0, 0.0]]]))), 4)
        0.3808
    """
    found = rdrop_loss(
        logits,
        None,
        kind=kind,
        divergence=divergence,
        stop_gradient=stop_gradient,
        mask=mask,
        reduction=reduction,
        normalizer=normalizer,
    )
    return found.divergence


def forward_passes(
    apply: Callable[..., Any], key: Array, *args: Any, passes: int = 2, strategy: Strategy = "shared", **kwargs: Any
) -> Any:
    """Call a function M times with keys of its own, and put a pass axis before the axes of what it returns.

    Args:
        apply: Called as `apply(key, *args, **kwargs)`; a network with dropout in training mode.
        key: A key, which `shared` splits.
        *args: As `apply` takes them. For `concat` B is the first axis of the first array that has one, and every array
            with B rows belongs to the batch; what is no part of it, such as the weights, belongs into `apply` itself.
        passes: M >= 1.
        strategy: `shared`: one `jax.vmap` over the keys, so that what does not depend on a key is computed once.
            `concat`: one call with the repeated batch, as in the paper, for networks that write state, such as the
            running statistics of BatchNorm: they then move once, by the rows of all passes.
        **kwargs: As `apply` takes them.

    Returns:
        What `apply` returns, any pytree: under `shared` with (M, ...) for every array, under `concat` with (M, B, ...)
        for every array (M * B, ...), and all else as it is. A function that returns state, which may have M * B rows by
        accident, belongs under `shared`.

    Raises:
        ValueError: There is no pass, the strategy has no such name, or under `concat` inputs or output have no batch.

    Examples:
        >>> def apply(key, x):
        ...     return x * jax.random.bernoulli(key, 0.5, x.shape) / 0.5
        >>> forward_passes(apply, jax.random.key(0), jnp.ones((4, 3))).shape
        (2, 4, 3)
    """
    if passes < 1:
        raise ValueError(f"passes is {passes!r}; expected a whole number of at least 1")
    check_choice("strategy", strategy, Strategy)
    if strategy == "concat":
        return _concat(apply, key, args, kwargs, passes)
    try:
        return jax.vmap(lambda each: apply(each, *args, **kwargs))(jax.random.split(key, passes))
    except Exception as error:
        if type(error).__name__ == "TraceContextError":  # of Flax, which need not be there
            error.add_note(
                "In rdrop.jax.forward_passes: the network writes state, such as the running statistics of BatchNorm, "
                'inside the vmap over the keys of the passes. Use strategy="concat".'
            )
        raise


def _concat(apply: Callable[..., Any], key: Array, args: tuple[Any, ...], kwargs: dict[str, Any], passes: int) -> Any:
    """One call with [x; x], its answer split."""
    rows = next((leaf.shape[0] for leaf in jax.tree.leaves((args, kwargs)) if getattr(leaf, "ndim", 0)), None)
    if rows is None:
        raise ValueError("the inputs hold no array with a batch axis; expected one with the batch on its first axis")
    total = passes * rows
    args, kwargs = jax.tree.map(
        lambda leaf: jnp.concatenate([leaf] * passes) if _has_rows(leaf, rows) else leaf, (args, kwargs)
    )
    found = apply(key, *args, **kwargs)
    if not any(_has_rows(leaf, total) for leaf in jax.tree.leaves(found)):
        shapes = ", ".join(str(getattr(leaf, "shape", leaf)) for leaf in jax.tree.leaves(found))
        raise ValueError(
            f"for the {rows} rows of the batch, {passes} times, the function returned nothing with {total} rows, but "
            f"{shapes}; expected the batch on the first axis of inputs and outputs, and the weights in the function"
        )
    return jax.tree.map(
        lambda leaf: leaf.reshape(passes, rows, *leaf.shape[1:]) if _has_rows(leaf, total) else leaf, found
    )


def _has_rows(leaf: Any, rows: int) -> bool:
    return getattr(leaf, "ndim", 0) > 0 and leaf.shape[0] == rows


def _rows(z: Array, y: Array | None, counts: Array, weight: Array | None, objective: Objective) -> tuple[Array, Array]:
    """Task loss and divergence of each position."""
    if objective.kind == "regression":
        answers = _stopped(z, objective)
        spread = answers - answers.mean(0)
        distance = 2 * jnp.square(spread).sum(0) / max(1, len(z) - 1)
        return (jnp.zeros_like(distance) if y is None else jnp.square(z - y.astype(z.dtype)).mean(0)), distance
    if objective.kind == "binary":
        log_p = jnp.stack((jax.nn.log_sigmoid(z), jax.nn.log_sigmoid(-z)), -1)
        target = None if y is None else jnp.stack((y.astype(z.dtype), 1 - y.astype(z.dtype)), -1)
    else:
        log_p = jax.nn.log_softmax(z, -1)
        target = None if y is None else _target(y, z, counts)
    distance = _divergence(log_p, objective)
    if target is None:
        return jnp.zeros_like(distance), distance
    possible = (log_p > -jnp.inf).all(0)
    if objective.label_smoothing:
        share = objective.label_smoothing / jnp.maximum(possible.sum(-1, keepdims=True), 1)
        target = (1 - objective.label_smoothing) * target + share * possible
    if weight is not None and objective.kind == "categorical":
        target = target * weight.astype(z.dtype)
    task = -jnp.where(target != 0, target * log_p, 0).sum(-1).mean(0)
    if weight is not None and objective.kind == "binary":
        task = task * weight.astype(z.dtype)
    return task, distance


def _target(y: Array, z: Array, counts: Array) -> Array:
    """Probabilities of the classes."""
    if jnp.issubdtype(y.dtype, jnp.floating):
        return y.astype(z.dtype)
    return jax.nn.one_hot(jnp.where(counts, y, 0), z.shape[-1], dtype=z.dtype)


def _stopped(answers: Array, objective: Objective) -> Array:
    """The answers, with the passes that `stop_gradient` names held constant."""
    if objective.stop_gradient is None:
        return answers
    moves = [each if objective.moves(i) else jax.lax.stop_gradient(each) for i, each in enumerate(answers)]
    return jnp.stack(moves)


def _divergence(log_p: Array, objective: Objective) -> Array:
    """The divergence of log-probabilities `(M, ..., C)`; the formulas are those of `rdrop.divergences`.

    A class that is impossible in all passes adds nothing. One that is so in some alone makes a Kullback-Leibler
    divergence infinite. Both are decided beside the formula, which sees finite numbers only: else a gradient would be
    nan.
    """
    passes = len(log_p)
    if passes == 1:
        return jnp.zeros(log_p.shape[1:-1], log_p.dtype)
    log_p = _stopped(log_p, objective)
    possible = log_p > -jnp.inf
    log_p = jnp.where(possible, log_p, 0)
    p = jnp.where(possible, jnp.exp(log_p), 0)
    if objective.divergence == "mse":
        return (2 * jnp.square(p - p.mean(0)).sum(0) / (passes - 1)).sum(-1)
    if objective.divergence == "js":
        log_mean = jax.nn.logsumexp(jnp.where(possible, log_p, -1e30), 0) - math.log(passes)
        return jnp.where(possible, p * (log_p - log_mean), 0).sum((0, -1)) / passes
    everywhere = possible.all(0)
    if objective.divergence == "kl":
        terms = p[0] * (log_p[0] - log_p[1:].mean(0))
        infinite = ~possible[1:].all(0) & (p[0] > 0)
    else:
        terms = ((p - p.mean(0)) * (log_p - log_p.mean(0))).sum(0) / (passes - 1)
        infinite = ~everywhere & (p > 0).any(0)
    return jnp.where(infinite, jnp.inf, jnp.where(everywhere, terms, 0)).sum(-1)


def _check(
    z: Array, y: Array | None, mask: Array | None, weight: Array | None, kind: Kind, ignore_index: int | None
) -> None:
    """Refuse dtypes, shapes and class ids that would give a wrong loss."""
    categorical = kind == "categorical"
    if not jnp.issubdtype(z.dtype, jnp.floating):
        raise wrong_dtype("logits", z.dtype)
    soft = categorical and y is not None and jnp.issubdtype(y.dtype, jnp.floating)
    check_shapes(kind, z.shape, *(None if each is None else each.shape for each in (y, mask, weight)), soft=soft)
    if categorical and y is not None and y.dtype == bool:
        raise wrong_dtype("labels", y.dtype)
    if mask is not None and jnp.issubdtype(mask.dtype, jnp.floating):
        raise wrong_dtype("mask", mask.dtype)
    if categorical and y is not None and not soft and _can_be_looked_at(y, mask):
        check_class_ids(np.asarray(y), None if mask is None else np.asarray(mask), z.shape[-1], ignore_index)


def _can_be_looked_at(*arrays: Array | None) -> bool:
    """Whether values are at hand at no cost: outside of compiled programs, on the CPU."""
    found = [each for each in arrays if each is not None]
    if any(isinstance(each, jax.core.Tracer) for each in found):
        return False
    return all(device.platform == "cpu" for each in found for device in each.devices())
