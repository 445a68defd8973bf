"""The chart of gain against cost: what each form of R-Drop brings for its computation, beside longer plain training."""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass
from itertools import pairwise

from matplotlib.ticker import FuncFormatter, MaxNLocator

from rdrop.report.charts import ROUND_STEPS, Chart, Table
from rdrop.report.number_format import metric_format, ratio, tick
from rdrop.report.svg import INK, MUTED, SURFACE, arm_style, drawing, inline_svg
from rdrop.toolkit.summary import Metric, Summary

WIDTH, HEIGHT = 430.0, 290.0
COSTS = 3  # different ones, that of plain training among them, from which on there is a course to see
APART = 0.04  # by which costs are different
DODGE = 0.013  # of the axis, between arms of the same cost


@dataclass(frozen=True)
class _Point:
    """An arm: its cost, and its difference to `plain` with an interval."""

    position: int
    name: str
    cost: float
    mean: float
    low: float
    high: float
    passes: int


def cost_chart(summary: Summary, metric: Metric) -> Chart | None:
    """Draw the difference of each arm to `plain` over the operations of its runs.

    Args:
        summary: The comparison.
        metric: One of its metrics.

    Returns:
        The chart, or None where the arms have fewer than three different costs.
    """
    shown = metric_format(summary, metric)
    points = []
    for position, arm in enumerate(summary.arms):
        difference = arm.differences.get(metric.name)
        if difference is None or not math.isfinite(difference.mean):
            continue
        mean, low, high = (
            shown.factor * (difference.mean if end is None else end)
            for end in (difference.mean, difference.low, difference.high)
        )
        points.append(_Point(position, arm.name, arm.total_compute, mean, low, high, arm.passes))
    points.sort(key=lambda point: (point.cost, point.position))
    costs = [1.0, *(point.cost for point in points)]
    if sum(dearer - cost > APART for cost, dearer in pairwise(costs)) < COSTS - 1:
        return None
    base = summary.arms[0].name
    title = f"{shown.heading}: gain against cost"
    best = (max if metric.higher_is_better else min)(points, key=lambda point: point.mean)
    named = [best, *(point for point in points if point.name == "rdrop" != best.name)]
    told = [f"{each.name} {shown.value(each.mean / shown.factor, sign=True)} at {ratio(each.cost)}" for each in named]
    finding = f"The best mean against {base} is that of {'; '.join(told)}."
    reading = (
        "Across: the operations of a whole run, as a ratio to plain training; up: the mean difference to plain "
        "training with its 95% interval, better upwards. The line joins the arms that are plain training with more "
        "steps: what lies above it is worth more than its computation."
    )
    rows = []
    for point in points:
        difference = summary.arms[point.position].differences[metric.name]
        rows.append([point.name, ratio(point.cost), shown.interval(difference, sign=True)])
    table = Table(title, ["Arm", "Operations of a run", f"Minus {base} [95% interval]"], rows)
    key = f"cost-{[each.name for each in summary.metrics].index(metric.name)}"
    with drawing(WIDTH, HEIGHT) as figure:
        axes = figure.add_subplot()
        axes.axhline(0, color=INK, linewidth=1.2)
        plain = [(1.0, 0.0), *((point.cost, point.mean) for point in points if point.passes == 1)]
        if len(plain) > 1:
            axes.plot(*zip(*plain, strict=True), color=MUTED, linewidth=1.4, linestyle=(0, (4, 2)))
        reach = max(point.cost for point in points) - 1 or 1.0
        for point, x in zip(points, _dodged(points, DODGE * reach), strict=True):
            style = arm_style(point.position)
            axes.plot([x, x], [point.low, point.high], color=style.colour, linewidth=1.4, alpha=0.7)
            axes.plot([x], [point.mean], marker=style.marker, markersize=8, color=style.colour, markeredgecolor=SURFACE)
        if not metric.higher_is_better:
            axes.invert_yaxis()
        axes.xaxis.set_major_locator(MaxNLocator(6, steps=ROUND_STEPS))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}\N{MULTIPLICATION SIGN}"))
        axes.yaxis.set_major_locator(MaxNLocator(6, steps=ROUND_STEPS))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: tick(y)))
        axes.set_xlabel("Operations of a run, to plain training")
        axes.set_title("\N{UPWARDS ARROW} better", loc="left", color=MUTED, weight="normal")
        panel = inline_svg(figure, key, title, finding)
    return Chart(key, title, finding, reading, [panel], table, [point.position for point in points], wide=True)


def _dodged(points: list[_Point], step: float) -> list[float]:
    """Where the points stand: beside each other where their costs are the same."""
    groups: dict[float, list[_Point]] = defaultdict(list)
    for point in points:
        groups[round(point.cost, 2)].append(point)
    return [
        point.cost + step * (place - (len(group) - 1) / 2)
        for group in groups.values()
        for place, point in enumerate(group)
    ]
