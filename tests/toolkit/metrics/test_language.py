from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rdrop.errors import UserError
from rdrop.toolkit.metrics.language import BITS_PER_CHARACTER, IGNORED, LANGUAGE_METRICS, language_metrics

NLL = np.array([[math.log(2), math.log(4), math.nan], [math.log(8), math.nan, math.nan]])
LABELS = np.array([[3, 4, IGNORED], [5, IGNORED, IGNORED]])
PREDICTED = np.array([[3, 7, 0], [5, IGNORED, 0]])


def test_values_computed_by_hand() -> None:
    # 1, 2 and 3 bits: 2 bits for each token, so a perplexity of 4; 6 bits over 12 characters.
    scores = language_metrics(NLL, PREDICTED, LABELS, characters=12)
    expected = {"perplexity": 4, "nll": 2 * math.log(2), "token_accuracy": 2 / 3, "bits_per_character": 1 / 2}
    assert scores == pytest.approx(expected)
    assert list(scores) == [metric.name for metric in (*LANGUAGE_METRICS, BITS_PER_CHARACTER)]


def test_bits_per_character_need_the_count_of_characters() -> None:
    assert list(language_metrics(NLL, PREDICTED, LABELS)) == [metric.name for metric in LANGUAGE_METRICS]


def test_perplexity_is_neither_a_mean_over_rows_nor_a_mean_of_perplexities() -> None:
    perplexity = language_metrics(NLL, PREDICTED, LABELS)["perplexity"]
    rows = [np.nanmean(row) for row in NLL]
    assert perplexity < math.exp(np.mean(rows)) < np.mean(np.exp(rows))


@given(st.permutations(range(6)), st.integers(1, 5))
def test_how_positions_are_put_into_rows_does_not_matter(order: list[int], padding: int) -> None:
    scores = language_metrics(NLL, PREDICTED, LABELS)
    nll, predicted, labels = (each.ravel()[order] for each in (NLL, PREDICTED, LABELS))
    assert language_metrics(nll, predicted, labels) == pytest.approx(scores)
    more = (
        np.append(nll, np.full(padding, 1e9)),
        np.append(predicted, np.full(padding, 9)),
        np.append(labels, np.full(padding, IGNORED)),
    )
    assert language_metrics(*more) == pytest.approx(scores)


def test_limits() -> None:
    labels = np.arange(4)
    assert language_metrics(np.zeros(4), labels, labels) == {"perplexity": 1.0, "nll": 0.0, "token_accuracy": 1.0}
    uniform = language_metrics(np.full(4, math.log(50)), labels + 1, labels)
    assert uniform == pytest.approx({"perplexity": 50, "nll": math.log(50), "token_accuracy": 0})


def test_a_perplexity_beyond_all_bounds_is_infinite() -> None:
    scores = language_metrics(np.array([800.0]), np.array([1]), np.array([1]))
    assert scores == {"perplexity": math.inf, "nll": 800.0, "token_accuracy": 1.0}


def test_the_mean_of_many_single_precision_values_is_exact() -> None:
    # Summed one by one in float32, this many values would be lost below the sum: 2^24 is the last whole number.
    nll = np.append(np.float32(2**24), np.ones(1000, dtype=np.float32))
    scores = language_metrics(nll, np.zeros(1001, dtype=int), np.zeros(1001, dtype=int))
    assert scores["nll"] == (2**24 + 1000) / 1001


def test_bad_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match=r"got nll \(2, 3\), predicted \(2, 3\), labels \(3,\); expected one shape"):
        language_metrics(NLL, PREDICTED, LABELS[0])
    with pytest.raises(ValueError, match="characters is 0; expected a count of at least 1"):
        language_metrics(NLL, PREDICTED, LABELS, characters=0)
    with pytest.raises(UserError, match="no target tokens"):
        language_metrics(NLL, PREDICTED, np.full_like(LABELS, IGNORED))
