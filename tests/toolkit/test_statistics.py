from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from rdrop.toolkit.statistics import interval, paired_difference


def test_an_interval_computed_by_hand() -> None:
    # Mean 4, standard deviation 2, three values; t(2) at 97.5% is 4.302652730.
    result = interval([2.0, 4.0, 6.0])
    half = 4.302652730 * 2 / math.sqrt(3)
    assert result.mean == 4.0
    assert (result.low, result.high) == pytest.approx((4 - half, 4 + half))


def test_a_paired_difference_computed_by_hand() -> None:
    # Differences 1, 2, 3: mean 2, standard deviation 1, t = 2 / (1 / sqrt 3) = 3.4641, p = 0.0742 with 2
    # degrees.
    result = paired_difference({0: 2.0, 1: 4.0, 2: 6.0}, {0: 1.0, 1: 2.0, 2: 3.0})
    assert result is not None
    assert result.per_seed == {0: 1.0, 1: 2.0, 2: 3.0}
    assert result.mean == 2.0
    half = 4.302652730 / math.sqrt(3)
    assert (result.low, result.high) == pytest.approx((2 - half, 2 + half))
    assert result.p_value == pytest.approx(0.0741799, abs=1e-6)


@given(st.lists(st.tuples(st.integers(-50, 50), st.integers(-50, 50)), min_size=2, max_size=12))
def test_the_p_value_is_that_of_the_paired_test_and_agrees_with_the_interval(
    pairs: list[tuple[int, int]],
) -> None:
    left = {seed: pair[0] / 7 for seed, pair in enumerate(pairs)}
    right = {seed: pair[1] / 7 for seed, pair in enumerate(pairs)}
    result = paired_difference(left, right)
    assert result is not None
    assert result.low is not None
    assert result.high is not None
    assert result.low <= result.mean <= result.high
    if len({a - b for a, b in pairs}) == 1:
        assert result.p_value is None
    else:
        paired = stats.ttest_rel(list(left.values()), list(right.values()))
        assert result.p_value == pytest.approx(paired.pvalue)
        assert result.p_value is not None
        if abs(result.p_value - 0.05) > 1e-9:
            assert (result.low > 0 or result.high < 0) == (result.p_value < 0.05)


def test_one_seed_has_a_mean_and_nothing_more() -> None:
    assert interval([3.0]).model_dump() == {"mean": 3.0, "low": None, "high": None}
    result = paired_difference({0: 3.0, 1: 5.0}, {1: 4.0, 2: 0.0})
    assert result is not None
    assert (result.mean, result.low, result.high, result.p_value) == (1.0, None, None, None)


def test_differences_without_variation_have_no_p_value() -> None:
    result = paired_difference({0: 0.3, 1: 0.7}, {0: 0.2, 1: 0.6})
    assert result is not None
    assert (result.low, result.high, result.p_value) == (result.mean, result.mean, None)


def test_nothing_in_common_is_no_difference() -> None:
    assert paired_difference({0: 1.0}, {1: 1.0}) is None
