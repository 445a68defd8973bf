"""One number for each example: correlations and the squared error."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from rdrop.toolkit.metrics.pairs import require_pairs
from rdrop.toolkit.summary import Metric

REGRESSION_METRICS = (
    Metric(
        name="pearson",
        label="Pearson correlation",
        higher_is_better=True,
        percent=False,
        explanation="Linear correlation of predictions and targets, from -1 to 1.",
    ),
    Metric(
        name="mse",
        label="MSE",
        higher_is_better=False,
        percent=False,
        explanation="Mean squared error, in the squared unit of the target.",
    ),
    Metric(
        name="spearman",
        label="Spearman correlation",
        higher_is_better=True,
        percent=False,
        explanation="Correlation of the ranks of predictions and targets, from -1 to 1.",
    ),
)


def regression_metrics(predictions: NDArray[np.floating[Any]], targets: NDArray[np.floating[Any]]) -> dict[str, float]:
    """Scores of `(N,)` predictions, those of `REGRESSION_METRICS`.

    A correlation is not defined where predictions or targets are all the same number. It is then 0, by convention: a
    model that answers the same whatever it is asked knows nothing about the order of the targets.

    Args:
        predictions: Predicted numbers `(N,)`.
        targets: The right ones `(N,)`.

    Returns:
        `pearson` (-1..1), `mse` and `spearman` (-1..1); correlations are nan if a number is not finite.

    Raises:
        UserError: If there are no examples.
        ValueError: If the shapes are not both `(N,)`.

    >>> scores = regression_metrics(np.array([1.0, 2.0, 4.0]), np.array([1.0, 2.0, 3.0]))
    >>> {name: round(value, 3) for name, value in scores.items()}
    {'pearson': 0.982, 'mse': 0.333, 'spearman': 1.0}
    """
    if predictions.ndim != 1 or targets.ndim != 1:
        raise ValueError(f"got predictions {predictions.shape} and targets {targets.shape}; expected (N,) for both")
    require_pairs(predictions, targets, "examples")
    x, y = predictions.astype(np.float64), targets.astype(np.float64)
    return {
        "pearson": _correlation(stats.pearsonr, x, y),
        "mse": float(np.square(x - y).mean()),
        "spearman": _correlation(stats.spearmanr, x, y),
    }


def _correlation(of: Any, x: NDArray[np.float64], y: NDArray[np.float64]) -> float:
    """One of scipy's correlations, with a value where a side is constant."""
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        return float("nan")
    if (x == x[0]).all() or (y == y[0]).all():
        return 0.0
    with warnings.catch_warnings():  # of a collapsed model the correlation is rounding noise, which its mean shows
        warnings.simplefilter("ignore", stats.NearConstantInputWarning)
        return float(of(x, y).statistic)
