from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.metrics import accuracy_score, f1_score, log_loss, matthews_corrcoef

from rdrop.errors import UserError
from rdrop.toolkit.metrics.classification import (
    BINS,
    CLASSIFICATION_METRICS,
    TWO_CLASS_METRICS,
    classification_metrics,
    confusion,
    reliability,
)


def drawn(classes: int, count: int = 50) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Random logits, and labels in which every class occurs."""
    generator = np.random.default_rng(classes)
    labels = generator.permutation(np.arange(count) % classes)
    return generator.normal(size=(count, classes)).astype(np.float32) * 3, labels


def answering(predicted: list[int], classes: int) -> NDArray[np.float64]:
    """Logits that say these classes."""
    return 5 * np.eye(classes)[predicted]


def names(metrics: tuple[Any, ...]) -> list[str]:
    return [metric.name for metric in metrics]


def test_accuracy_and_likelihood_are_those_of_scikit_learn() -> None:
    generator = np.random.default_rng(0)
    logits = generator.normal(size=(50, 4)).astype(np.float32) * 3
    labels = generator.integers(4, size=50)
    scores = classification_metrics(logits, labels)
    exponentials = np.exp(logits.astype(np.float64))
    probabilities = exponentials / exponentials.sum(-1, keepdims=True)
    assert scores["accuracy"] == accuracy_score(labels, logits.argmax(-1))
    assert scores["nll"] == pytest.approx(log_loss(labels, probabilities), rel=1e-9)


@pytest.mark.parametrize("classes", [2, 4])
def test_f1_and_matthews_are_those_of_scikit_learn(classes: int) -> None:
    logits, labels = drawn(classes)
    scores, predicted = classification_metrics(logits, labels), logits.argmax(-1)
    assert scores["macro_f1"] == f1_score(labels, predicted, average="macro")
    assert scores["matthews"] == matthews_corrcoef(labels, predicted)
    assert scores.get("f1") == (f1_score(labels, predicted) if classes == 2 else None)


def test_f1_and_matthews_computed_by_hand() -> None:
    # True positives 2, false positives 1, false negatives 2, true negatives 3.
    labels = np.array([1, 1, 1, 1, 0, 0, 0, 0])
    scores = classification_metrics(answering([1, 1, 0, 0, 1, 0, 0, 0], classes=2), labels)
    assert scores["f1"] == pytest.approx(4 / 7)
    assert scores["macro_f1"] == pytest.approx((4 / 7 + 6 / 9) / 2)
    assert scores["matthews"] == pytest.approx((2 * 3 - 1 * 2) / np.sqrt(3 * 4 * 4 * 5))


@pytest.mark.parametrize("classes", [2, 3])
def test_every_metric_has_a_value_and_the_main_one_comes_first(classes: int) -> None:
    metrics = TWO_CLASS_METRICS if classes == 2 else CLASSIFICATION_METRICS
    assert list(classification_metrics(*drawn(classes))) == names(metrics)
    assert names(metrics)[:3] == ["accuracy", "nll", "ece"]


@pytest.mark.parametrize("classes", [2, 5])
def test_limits(classes: int) -> None:
    labels = np.arange(20) % classes
    perfect = classification_metrics(200 * answering(labels.tolist(), classes), labels)
    assert perfect == dict.fromkeys(perfect, 1.0) | {"nll": 0.0, "ece": 0.0}
    wrong = classification_metrics(200 * answering(((labels + 1) % classes).tolist(), classes), labels)
    assert (wrong["accuracy"], wrong["nll"], wrong["ece"], wrong["macro_f1"]) == (0.0, 1000.0, 1.0, 0.0)
    assert wrong["matthews"] == pytest.approx(-1 / (classes - 1))


@given(st.permutations(range(30)), st.permutations(range(4)))
def test_order_of_examples_and_numbering_of_classes_do_not_matter(order: list[int], numbering: list[int]) -> None:
    logits, labels = drawn(4, count=30)
    renumbered = np.argsort(numbering)[labels]
    scores = classification_metrics(logits, labels)
    assert classification_metrics(logits[order], labels[order]) == pytest.approx(scores)
    assert classification_metrics(logits[:, numbering], renumbered) == pytest.approx(scores)


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), min_size=1, max_size=6))
def test_few_examples_and_missing_classes_never_leave_a_metric_undefined(pairs: list[tuple[int, int]]) -> None:
    predicted, labels = zip(*pairs, strict=True)
    scores = classification_metrics(answering(list(predicted), classes=3), np.array(labels))
    bounds = dict.fromkeys(scores, (0.0, 1.0)) | {"nll": (0.0, np.inf), "matthews": (-1.0, 1.0)}
    assert all(bounds[name][0] <= value <= bounds[name][1] for name, value in scores.items())


def test_one_class_alone_has_no_correlation_and_macro_f1_of_that_class() -> None:
    perfect = classification_metrics(answering([1, 1], classes=3), np.array([1, 1]))
    assert (perfect["accuracy"], perfect["macro_f1"], perfect["matthews"]) == (1.0, 1.0, 0.0)
    half = classification_metrics(answering([1, 2], classes=3), np.array([1, 1]))
    assert (half["macro_f1"], half["matthews"]) == pytest.approx((2 / 3, 0.0))
    absent = classification_metrics(answering([0, 0], classes=2), np.array([0, 0]))
    assert (absent["f1"], absent["macro_f1"]) == (0.0, 1.0)


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
    on_the_edge = reliability(np.zeros((1, 2)), np.array([0]), bins=2)
    assert [b.count for b in on_the_edge] == [1, 0]


def test_large_logits_stay_finite() -> None:
    scores = classification_metrics(np.array([[800.0, -800.0]]), np.array([1]))
    assert scores == {"accuracy": 0.0, "nll": 1600.0, "ece": 1.0, "macro_f1": 0.0, "matthews": 0.0, "f1": 0.0}


def test_confusion_counts_true_classes_by_row_and_predicted_ones_by_column() -> None:
    table = confusion(answering([0, 2, 2, 0], classes=4), np.array([0, 0, 0, 2]), ["sprout", "leaf", "rosette", "ear"])
    assert table.labels == ["sprout", "leaf", "rosette", "ear"]
    assert table.counts == [[1, 0, 2, 0], [0, 0, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0]]


def test_confusion_agrees_with_accuracy() -> None:
    logits, labels = drawn(4)
    counts = np.array(confusion(logits, labels, list("abcd")).counts)
    assert counts.sum(axis=1).tolist() == np.bincount(labels).tolist()
    assert counts.trace() / counts.sum() == classification_metrics(logits, labels)["accuracy"]


@pytest.mark.parametrize("measure", [classification_metrics, partial(confusion, names=["a", "b"])])
def test_labels_that_do_not_fit_are_refused(measure: Any) -> None:
    logits = np.zeros((2, 2))
    with pytest.raises(ValueError, match=r"got the label -100; expected class ids in 0\.\.1"):
        measure(logits, np.array([0, -100]))
    with pytest.raises(ValueError, match="got the label 2; expected"):
        measure(logits, np.array([2, 0]))
    with pytest.raises(ValueError, match="predictions for 2 of 3 examples"):
        measure(logits, np.array([0, 1, 0]))
    with pytest.raises(ValueError, match=r"got logits \(2, 2\) and labels \(2, 1\); expected \(N, C\) and \(N,\)"):
        measure(logits, np.array([[0], [1]]))
    with pytest.raises(UserError, match="no examples to score"):
        measure(np.zeros((0, 2)), np.array([], dtype=int))


def test_confusion_needs_a_name_for_each_class() -> None:
    with pytest.raises(ValueError, match="got 1 names for logits of 2 classes"):
        confusion(np.zeros((1, 2)), np.array([0]), ["a"])
