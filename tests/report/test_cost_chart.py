from __future__ import annotations

import re
from collections.abc import Callable

import pytest

from rdrop.report.cost_chart import cost_chart
from rdrop.toolkit.summary import Summary

MakeSummary = Callable[..., Summary]

COSTS = {"plain": 1.0, "rdrop": 2.0, "every-2": 1.5, "fraction-0.5": 1.5, "longer-1.5": 1.5, "longer": 2.0}


@pytest.fixture
def study(make_summary: MakeSummary) -> Summary:
    """Arms of three costs."""
    summary = make_summary(arms=tuple(COSTS))
    arms = [
        arm.model_copy(
            update={"total_compute": COSTS[arm.name], "passes": 1 if arm.name.startswith(("plain", "longer")) else 2}
        )
        for arm in summary.arms
    ]
    return summary.model_copy(update={"arms": arms})


def points_of(drawing: str) -> dict[str, tuple[float, float]]:
    """Where the marks of the arms are, by their colours."""
    found = re.findall(r'<use [^>]*x="([\d.]+)" y="([\d.]+)" style="fill: var\((--arm-\d)\)', drawing)
    return {colour: (float(x), float(y)) for x, y, colour in found}


def test_arms_stand_at_their_costs_the_better_the_higher(study: Summary) -> None:
    for metric in study.metrics[:2]:
        chart = cost_chart(study, metric)
        assert chart is not None
        points = points_of(chart.panels[0])
        names = [arm.name for arm in study.arms]
        assert set(points) == {f"--arm-{position}" for position in range(1, 6)}
        by_name = {names[int(colour[-1])]: point for colour, point in points.items()}
        left = [by_name[name][0] for name in ("every-2", "fraction-0.5", "longer-1.5")]
        right = [by_name[name][0] for name in ("rdrop", "longer")]
        # Beside each other where the cost is the same.
        assert len({*left, *right}) == 5
        assert max(left) < min(right)
        assert max(left) - min(left) < 0.2 * (min(right) - max(left))
        gains = {arm.name: arm.differences[metric.name].mean for arm in study.arms[1:]}
        better = sorted(gains, key=gains.__getitem__, reverse=metric.higher_is_better)
        assert sorted(by_name, key=lambda name: by_name[name][1]) == better  # SVG counts downwards
        assert f"is that of {better[0]} " in chart.finding


def test_the_table_has_every_arm_from_cheap_to_dear(study: Summary) -> None:
    chart = cost_chart(study, study.metrics[0])
    assert chart is not None
    assert [(row[0], row[1]) for row in chart.table.rows] == [
        ("every-2", "1.50×"),
        ("fraction-0.5", "1.50×"),
        ("longer-1.5", "1.50×"),
        ("rdrop", "2.00×"),
        ("longer", "2.00×"),
    ]
    assert chart.legend == [2, 3, 4, 1, 5]


def test_plain_training_is_joined_from_its_origin(study: Summary) -> None:
    chart = cost_chart(study, study.metrics[0])
    assert chart is not None
    (joined,) = re.findall(
        r'<path d="([^"]*)"[^>]*style="fill: none; stroke-dasharray[^"]*var\(--muted\)', chart.panels[0]
    )
    assert len(re.findall("[ML]", joined)) == 3  # plain, longer-1.5, longer


def test_two_costs_are_no_course(make_summary: MakeSummary) -> None:
    summary = make_summary()
    assert max(arm.total_compute for arm in summary.arms) - 1.98 < 0.04
    assert cost_chart(summary, summary.metrics[0]) is None
