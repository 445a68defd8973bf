from __future__ import annotations

from collections.abc import Callable

import pytest

from rdrop.report.number_format import count, metric_format, number, p_value, ratio, tick, two_digits
from rdrop.toolkit.summary import Summary

MINUS = "\N{MINUS SIGN}"


@pytest.mark.parametrize(
    ("value", "decimals", "sign", "text"),
    [
        (0.474, 2, True, "+0.47"),
        (-0.034, 3, False, f"{MINUS}0.034"),
        (-0.004, 2, True, "0.00"),
        (0.0, 1, True, "0.0"),
        (None, 2, True, "\N{EN DASH}"),
        (float("nan"), 2, False, "not a number"),
        (float("-inf"), 2, False, f"{MINUS}infinite"),
        (1234.5, 0, False, "1234"),
    ],
)
def test_number(value: float | None, decimals: int, sign: bool, text: str) -> None:
    assert number(value, decimals, sign=sign) == text


@pytest.mark.parametrize(
    ("p", "text"),
    [
        (0.0304, "p = 0.03"),
        (0.0456, "p = 0.046"),
        (0.28, "p = 0.28"),
        (0.001, "p = 0.001"),
        (0.00099, "p < 0.001"),
        (1.0, "p > 0.99"),
        (None, ""),
        (float("nan"), ""),
    ],
)
def test_p_value(p: float | None, text: str) -> None:
    assert p_value(p) == text


def test_two_digits_follow_the_typical_width_and_ignore_zeros() -> None:
    assert two_digits([0.0, 0.35, float("nan"), 0.4]) == 2
    assert two_digits([12.0]) == 1
    assert two_digits([1e-12]) == 6
    assert two_digits([]) == 2


def test_ratio_tick_and_count() -> None:
    assert ratio(1.996) == "2.00\N{MULTIPLICATION SIGN}"
    assert tick(-0.25) == f"{MINUS}0.25"
    assert count(1, "seed") == "1 seed"
    assert count(1200, "optimizer step") == "1,200 optimizer steps"


def test_a_metric_has_one_format_for_all_arms(summary: Summary) -> None:
    accuracy, nll = (metric_format(summary, metric) for metric in summary.metrics[:2])
    assert (accuracy.heading, accuracy.unit, accuracy.decimals) == ("Accuracy (%)", " points", 2)
    assert (nll.heading, nll.unit, nll.decimals) == ("NLL", "", 4)
    difference = summary.arms[2].differences["accuracy"]
    low, high = (f"{100 * (end or 0):.2f}" for end in (difference.low, difference.high))
    assert accuracy.interval(difference, sign=True) == f"+{100 * difference.mean:.2f} [{low}, {high}]"


def test_one_seed_has_values_without_brackets(make_summary: Callable[..., Summary]) -> None:
    summary = make_summary(seeds=[3])
    shown = metric_format(summary, summary.metrics[0])
    mean = summary.arms[0].metrics["accuracy"].mean
    assert shown.interval(summary.arms[0].metrics["accuracy"]) == f"{100 * mean:.2f}"
