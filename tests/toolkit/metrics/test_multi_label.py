from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, f1_score, log_loss

from rdrop.errors import UserError
from rdrop.toolkit.metrics.multi_label import MULTI_LABEL_METRICS, multi_label_metrics

# Label 0: one hit, one false alarm. Label 1: one hit, one miss. Label 2: neither there nor predicted.
LABELS = np.array([[1, 1, 0], [0, 1, 0], [0, 0, 0]])
LOGITS = np.array([[2.0, 1.0, -3.0], [1.0, -1.0, -3.0], [-1.0, -1.0, -3.0]])


def test_values_computed_by_hand() -> None:
    scores = multi_label_metrics(LOGITS, LABELS)
    surprise = [np.log1p(np.exp(-z if y else z)) for z, y in zip(LOGITS.flat, LABELS.flat, strict=True)]
    assert scores == pytest.approx(
        {"micro_f1": 2 / 3, "nll": np.mean(surprise), "macro_f1": (2 / 3 + 2 / 3) / 2, "subset_accuracy": 2 / 3}
    )
    assert list(scores) == [metric.name for metric in MULTI_LABEL_METRICS]


def test_values_are_those_of_scikit_learn() -> None:
    generator = np.random.default_rng(0)
    logits = generator.normal(size=(30, 5)).astype(np.float32)
    labels = (generator.random((30, 5)) < 0.3).astype(np.float32)
    scores, predicted = multi_label_metrics(logits, labels), (logits > 0).astype(int)
    probabilities = 1 / (1 + np.exp(-logits.astype(np.float64)))
    assert scores["micro_f1"] == pytest.approx(f1_score(labels, predicted, average="micro"))
    assert scores["macro_f1"] == pytest.approx(f1_score(labels, predicted, average="macro"))
    assert scores["subset_accuracy"] == accuracy_score(labels, predicted)
    assert scores["nll"] == pytest.approx(log_loss(labels.ravel(), probabilities.ravel()))


def test_limits() -> None:
    perfect = multi_label_metrics(800 * (2.0 * LABELS - 1), LABELS)
    assert perfect == {"micro_f1": 1.0, "nll": 0.0, "macro_f1": 1.0, "subset_accuracy": 1.0}
    wrong = multi_label_metrics(800 * (1 - 2.0 * LABELS), LABELS)
    assert wrong == {"micro_f1": 0.0, "nll": 800.0, "macro_f1": 0.0, "subset_accuracy": 0.0}


def test_probability_one_half_is_not_above_the_threshold() -> None:
    scores = multi_label_metrics(np.array([[0.0, 1e-6]]), np.array([[1, 1]]))
    assert (scores["micro_f1"], scores["nll"]) == pytest.approx((2 / 3, np.log(2)), rel=1e-5)


def test_a_single_label_counts_its_presence_alone() -> None:
    logits, labels = np.array([[1.0], [1.0], [-1.0]]), np.array([[1], [0], [0]])
    scores = multi_label_metrics(logits, labels)
    assert (scores["micro_f1"], scores["macro_f1"]) == pytest.approx((2 / 3, 2 / 3))
    assert scores["subset_accuracy"] == pytest.approx(2 / 3)


@pytest.mark.parametrize("logit", [-1.0, 1.0])
def test_without_any_label_in_the_references_f1_is_zero(logit: float) -> None:
    scores = multi_label_metrics(np.full((2, 3), logit), np.zeros((2, 3)))
    assert (scores["micro_f1"], scores["macro_f1"]) == (0.0, 0.0)
    assert scores["subset_accuracy"] == (logit < 0)


def test_a_label_that_does_not_occur_leaves_macro_f1_alone() -> None:
    absent, claimed = np.full((3, 1), -1.0), np.full((3, 1), 1.0)
    known = multi_label_metrics(LOGITS[:, :2], LABELS[:, :2])
    for column in (absent, claimed):
        more = multi_label_metrics(np.hstack([LOGITS[:, :2], column]), LABELS)
        assert more["macro_f1"] == known["macro_f1"]
    assert more["micro_f1"] < known["micro_f1"]


@given(st.permutations(range(3)), st.permutations(range(3)))
def test_order_of_examples_and_labels_does_not_matter(rows: list[int], columns: list[int]) -> None:
    shuffled = multi_label_metrics(LOGITS[rows][:, columns], LABELS[rows][:, columns])
    assert shuffled == pytest.approx(multi_label_metrics(LOGITS, LABELS))


def test_labels_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match=r"got logits \(3, 3\) and labels \(3, 1\); expected \(N, C\) for both"):
        multi_label_metrics(LOGITS, LABELS[:, :1])
    with pytest.raises(ValueError, match=r"expected \(N, C\) for both"):
        multi_label_metrics(LOGITS[0], LABELS[0])
    with pytest.raises(ValueError, match="predictions for 3 of 2 examples"):
        multi_label_metrics(LOGITS, LABELS[:2])
    for stranger in (2, -100, np.nan):
        with pytest.raises(ValueError, match=f"got a label {stranger}.*; expected 0 or 1"):
            multi_label_metrics(LOGITS, np.where(LABELS == 1, stranger, 0.0))
    with pytest.raises(UserError, match="no examples"):
        multi_label_metrics(np.zeros((0, 3)), np.zeros((0, 3)))
