from __future__ import annotations

from collections.abc import Callable

import pytest

from rdrop.report.number_format import count, metric_format, number, p_value, plain_decimals, ratio, tick, two_digits
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
    assert tick(24_000) == "24,000"
    assert count(1, "seed") == "1 seed"
    assert count(1200, "optimizer step") == "1,200 optimizer steps"


def test_a_metric_has_one_format_for_all_arms(summary: Summary) -> None:
    accuracy, nll = (metric_format(summary, metric) for metric in summary.metrics[:2])
    assert (accuracy.heading, accuracy.unit, accuracy.decimals) == ("Accuracy (%)", " points", 2)
    assert (nll.heading, nll.unit, nll.decimals) == ("NLL", "", 4)
    difference = summary.arms[2].differences["accuracy"]
    low, high = (f"{100 * (end or 0):.2f}" for end in (difference.low, difference.high))
    assert accuracy.interval(difference, sign=True) == f"+{100 * difference.mean:.2f} [{low}, {high}]"


@pytest.mark.parametrize(
    ("values", "halves", "decimals"),
    [
        ([28.4, 29.3], [0.5], 2),  # BLEU
        ([28.4, 29.3], [2.5], 2),
        ([28.4, 29.3], [0.004], 2),
        ([28.4], [], 2),
        ([24_000.0], [900.0], 2),  # perplexity
        ([-28.4], [], 2),
        ([2.31], [0.04], 3),
        ([2.31], [1.5], 2),
        ([2.31], [0.00002], 4),
        ([0.861], [0.12], 3),  # correlation
        ([0.861], [0.02], 3),
        ([0.129], [0.006], 4),  # likelihood
        ([0.861], [], 4),
        ([0.0], [], 3),
        ([float("nan"), 30.0], [float("nan")], 2),
        ([], [], 3),
    ],
)
def test_decimals_of_what_is_no_fraction_follow_its_size(
    values: list[float], halves: list[float], decimals: int
) -> None:
    assert plain_decimals(values, halves) == decimals


@pytest.mark.parametrize(("task", "decimals"), [("translation", (2, 3)), ("language", (2, 3)), ("similarity", (4, 3))])
def test_values_and_differences_of_other_tasks(
    task: str, decimals: tuple[int, int], make_summary: Callable[..., Summary]
) -> None:
    summary = make_summary(seeds=[0, 1, 2], task=task)
    for metric, places in zip(summary.metrics, decimals, strict=False):
        shown = metric_format(summary, metric)
        arm = summary.arms[2]
        assert (shown.decimals, shown.unit, shown.heading) == (places, "", metric.label)
        assert shown.value(arm.metrics[metric.name].mean) == f"{arm.metrics[metric.name].mean:.{places}f}"
        difference = f"{arm.differences[metric.name].mean:+.{places}f}".replace("-", MINUS)
        assert shown.value(arm.differences[metric.name].mean, sign=True) == difference


def test_a_label_keeps_its_case(make_summary: Callable[..., Summary]) -> None:
    summary = make_summary(seeds=[0], task="translation")
    assert metric_format(summary, summary.metrics[2]).label == "chrF"


def test_one_seed_has_values_without_brackets(make_summary: Callable[..., Summary]) -> None:
    summary = make_summary(seeds=[3])
    shown = metric_format(summary, summary.metrics[0])
    mean = summary.arms[0].metrics["accuracy"].mean
    assert shown.interval(summary.arms[0].metrics["accuracy"]) == f"{100 * mean:.2f}"
