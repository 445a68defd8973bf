from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from sklearn.metrics import mean_squared_error

from rdrop.errors import UserError
from rdrop.toolkit.metrics.regression import REGRESSION_METRICS, regression_metrics

NUMBERS = st.floats(-1e6, 1e6, width=32)


def test_values_computed_by_hand() -> None:
    # Deviations -1, 0, 1 and -2, 1, 1 from means 2 and 2: 3 / sqrt(2 * 6). Ranks 1, 2, 3 and 1, 2.5, 2.5.
    scores = regression_metrics(np.array([1.0, 2.0, 3.0]), np.array([0.0, 3.0, 3.0]))
    assert scores == pytest.approx({"pearson": 3 / math.sqrt(12), "mse": 2 / 3, "spearman": 1.5 / math.sqrt(3)})
    assert list(scores) == [metric.name for metric in REGRESSION_METRICS]


def test_values_are_those_of_scipy_and_scikit_learn() -> None:
    generator = np.random.default_rng(0)
    targets = generator.uniform(0, 5, size=40)
    predictions = (targets + generator.normal(size=40)).astype(np.float32)
    scores = regression_metrics(predictions, targets)
    assert scores["pearson"] == pytest.approx(stats.pearsonr(predictions, targets).statistic, rel=1e-6)
    assert scores["spearman"] == stats.spearmanr(predictions, targets).statistic
    assert scores["mse"] == pytest.approx(mean_squared_error(targets, predictions))


def test_limits() -> None:
    targets = np.array([0.0, 1.0, 4.0, 5.0])
    assert regression_metrics(targets, targets) == pytest.approx({"pearson": 1, "mse": 0, "spearman": 1})
    opposite = regression_metrics(-targets, targets)
    assert (opposite["pearson"], opposite["spearman"]) == pytest.approx((-1, -1))


def test_a_monotonic_prediction_has_the_right_ranks_and_not_the_right_line() -> None:
    targets = np.arange(6.0)
    scores = regression_metrics(np.exp(targets), targets)
    assert scores["spearman"] == pytest.approx(1)
    assert scores["pearson"] < 0.9


@pytest.mark.parametrize(
    ("predictions", "targets"),
    [([2.0, 2.0, 2.0], [1.0, 2.0, 3.0]), ([1.0, 2.0, 3.0], [2.0, 2.0, 2.0]), ([0.1] * 3, [0.1] * 3), ([1.0], [3.0])],
)
def test_constant_answers_have_correlation_zero(predictions: list[float], targets: list[float]) -> None:
    scores = regression_metrics(np.array(predictions, dtype=np.float32), np.array(targets))
    assert (scores["pearson"], scores["spearman"]) == (0.0, 0.0)
    assert math.isfinite(scores["mse"])


@pytest.mark.parametrize("broken", [math.nan, math.inf])
def test_a_number_that_is_not_finite_is_not_called_uncorrelated(broken: float) -> None:
    scores = regression_metrics(np.array([broken, broken, 1.0]), np.array([1.0, 2.0, 3.0]))
    assert not any(math.isfinite(value) for value in scores.values())


@given(st.lists(st.tuples(NUMBERS, NUMBERS), min_size=1, max_size=12), st.randoms())
def test_scores_are_defined_bounded_and_do_not_depend_on_the_order(
    pairs: list[tuple[float, float]], shuffler: np.random.RandomState
) -> None:
    shuffled = list(pairs)
    shuffler.shuffle(shuffled)
    first, second = (regression_metrics(*np.array(each).T) for each in (pairs, shuffled))
    assert all(-1 - 1e-9 <= first[name] <= 1 + 1e-9 for name in ("pearson", "spearman"))
    assert first["mse"] >= 0
    assert second == pytest.approx(first, rel=1e-6, abs=1e-6)


def test_nearly_constant_predictions_are_scored_without_a_warning() -> None:
    scores = regression_metrics(np.array([1.0, 1.0, 1.0 + 2e-16]), np.array([1.0, 2.0, 3.0]))
    assert all(math.isfinite(value) for value in scores.values())


def test_shapes_that_would_broadcast_are_refused() -> None:
    with pytest.raises(ValueError, match=r"got predictions \(3, 1\) and targets \(3,\); expected \(N,\) for both"):
        regression_metrics(np.zeros((3, 1)), np.zeros(3))
    with pytest.raises(ValueError, match="predictions for 1 of 3 examples"):
        regression_metrics(np.zeros(1), np.zeros(3))
    with pytest.raises(UserError, match="no examples"):
        regression_metrics(np.zeros(0), np.zeros(0))
