from __future__ import annotations

import io
from collections.abc import Callable

import pytest
from rich.console import Console

from rdrop.report.number_format import metric_format, p_value, ratio
from rdrop.report.table import comparison_table
from rdrop.toolkit.summary import Summary

MakeSummary = Callable[..., Summary]


def shown(summary: Summary, width: int = 80) -> str:
    out = io.StringIO()
    Console(file=out, width=width).print(comparison_table(summary))
    return out.getvalue()


@pytest.mark.parametrize("width", [80, 160])
def test_every_number_is_there_and_nothing_is_cut(summary: Summary, width: int) -> None:
    text = shown(summary, width)
    assert "\N{HORIZONTAL ELLIPSIS}" not in text
    assert max(map(len, text.splitlines())) <= width
    for arm in summary.arms:
        for metric in summary.metrics[:2]:
            form = metric_format(summary, metric)
            assert form.interval(arm.metrics[metric.name]) in text
            if arm.name != "plain":
                difference = arm.differences[metric.name]
                assert form.interval(difference, sign=True) in text
                assert p_value(difference.p_value) in text
        for metric in summary.metrics[2:4]:
            assert metric_format(summary, metric).value(arm.metrics[metric.name].mean) in text
        assert ratio(arm.total_compute) in text
        assert ratio(summary.timing.step_ratio[arm.name].mean) in text


def test_the_headline_comes_last_after_the_notes(summary: Summary) -> None:
    words = " ".join(shown(summary).split())
    assert words.endswith(summary.headline)
    assert all(f"Note: {note}" in words for note in summary.notes)


def test_failed_runs_are_told_and_an_arm_without_results_keeps_its_row(make_summary: MakeSummary) -> None:
    failed = [("twice", 0), ("twice", 1), ("rdrop", 1)]
    text = shown(make_summary(seeds=(0, 1), failed=failed, error="[red]nan[/red] at step 3"), 160)
    for arm, seed in failed:
        assert f"{arm}, seed {seed}: failed: [red]nan[/red] at step 3" in text
    seeds = [line.split()[3] for line in text.splitlines() if line.startswith("\N{BOX DRAWINGS LIGHT VERTICAL} ")]
    assert [count for count in seeds if count.isdigit()] == ["2", "0", "1", "2"]


def test_one_seed_has_means_alone(make_summary: MakeSummary) -> None:
    text = shown(make_summary(seeds=(3,)))
    assert "1 seed" in text
    assert "[" not in text
    assert "p =" not in text
