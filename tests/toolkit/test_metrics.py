from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, log_loss

from rdrop.toolkit.metrics import BINS, CLASSIFICATION_METRICS, classification_metrics, reliability


def test_accuracy_and_likelihood_are_those_of_scikit_learn() -> None:
    generator = np.random.default_rng(0)
    logits = generator.normal(size=(50, 4)).astype(np.float32) * 3
    labels = generator.integers(4, size=50)
    scores = classification_metrics(logits, labels)
    exponentials = np.exp(logits.astype(np.float64))
    probabilities = exponentials / exponentials.sum(-1, keepdims=True)
    assert scores["accuracy"] == accuracy_score(labels, logits.argmax(-1))
    assert scores["nll"] == pytest.approx(log_loss(labels, probabilities), rel=1e-9)


def test_calibration_error_of_a_hand_made_example() -> None:
    # Two bins of width 1/2 of which the upper is used: three predictions with confidence 0.9, two of them
    # right, and one with 0.6, wrong. Mean confidence 0.825, accuracy 0.5.
    probabilities = np.array([[0.9, 0.1], [0.9, 0.1], [0.1, 0.9], [0.6, 0.4]])
    labels = np.array([0, 1, 1, 1])
    lower, upper = reliability(np.log(probabilities), labels, bins=2)
    assert (lower.count, lower.confidence, lower.accuracy) == (0, None, None)
    assert (upper.count, upper.accuracy) == (4, 0.5)
    assert upper.confidence == pytest.approx(0.825)
    # With 15 bins 0.9 and 0.6 fall into different ones: 3/4 * |2/3 - 0.9| + 1/4 * |0 - 0.6|.
    assert classification_metrics(np.log(probabilities), labels)["ece"] == pytest.approx(0.175 + 0.15)


def test_every_prediction_falls_into_one_bin() -> None:
    logits = np.array([[40.0, 0.0], [0.0, 0.0], [800.0, -800.0]])  # confidence 1, 1/2 and 1 exactly
    bins = reliability(logits, np.array([0, 0, 0]))
    assert len(bins) == BINS
    assert [b.count for b in bins] == [0] * 7 + [1] + [0] * 6 + [2]


def test_large_logits_stay_finite() -> None:
    scores = classification_metrics(np.array([[800.0, -800.0]]), np.array([1]))
    assert scores == {"accuracy": 0.0, "nll": 1600.0, "ece": 1.0}


def test_the_main_metric_comes_first() -> None:
    assert [metric.name for metric in CLASSIFICATION_METRICS[:3]] == ["accuracy", "nll", "ece"]
