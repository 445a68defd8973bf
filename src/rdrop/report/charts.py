"""The charts of the report: each is a drawing, the finding in words and the table of its numbers."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter
from numpy.typing import NDArray

from rdrop.report.number_format import (
    MISSING,
    MetricFormat,
    count,
    metric_format,
    number,
    p_value,
    plain_decimals,
    tick,
)
from rdrop.report.svg import INK, MUTED, RULE, SURFACE, ArmStyle, arm_style, drawing, inline_svg, short
from rdrop.toolkit.statistics import interval
from rdrop.toolkit.summary import Curve, Interval, Metric, ReliabilityBin, Summary

WIDTH, HEIGHT = 330.0, 235.0
ROW_HEIGHT = 46.0
TRAINING_BINS = 40
# With two seeds, t of one degree of freedom makes a band that hides every line; the table has its numbers.
SEEDS_OF_A_BAND = 3
POINTS_OF_A_HALF = 5
ROUND_STEPS = [1, 2, 2.5, 5, 10]

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Table:
    """The numbers behind a chart; the first column names the row."""

    caption: str
    columns: list[str]
    rows: list[list[str]]


@dataclass(frozen=True)
class Chart:
    """One figure of the page."""

    key: str
    title: str
    finding: str
    reading: str
    panels: list[Markup]
    table: Table
    legend: list[int]
    wide: bool = False


@dataclass(frozen=True)
class _Line:
    """An arm's mean over seeds, with its interval; the ends of that are the mean itself with one seed."""

    position: int
    name: str
    seeds: int
    steps: Array
    mean: Array
    low: Array
    high: Array


@dataclass(frozen=True)
class _Row:
    """An arm's value per seed, with mean and interval."""

    position: int
    name: str
    dots: list[float]
    interval: Interval


def learning_charts(summary: Summary) -> list[Chart]:
    """Draw every evaluation that was made while training, over the optimizer steps.

    Args:
        summary: The comparison; its runs hold a curve `eval_<name>` for each evaluated quantity.

    Returns:
        A chart for each metric that has such a curve, of more than one step, in the order of the metrics; then one for
        each curve that
        belongs to no metric, which is drawn without a word on what is better.
    """
    curves = dict.fromkeys(name for run in summary.runs for name in run.curves if name.startswith("eval_"))
    unnamed = [name for name in curves if name.removeprefix("eval_") not in {m.name for m in summary.metrics}]
    charts = [learning_chart(summary, metric) for metric in summary.metrics]
    for index, curve in enumerate(unnamed):
        lines = _lines(summary, curve, 1.0)
        ends = [float(line.mean[-1]) for line in lines]
        words = curve.removeprefix("eval_").replace("_", " ")
        shown = MetricFormat(f"{words[:1].upper()}{words[1:]} in evaluations", 1.0, plain_decimals(ends, []))
        charts.append(_learning_chart(f"learning-other-{index}", shown, lines, best=None))
    return [chart for chart in charts if chart]


def learning_chart(summary: Summary, metric: Metric) -> Chart | None:
    """Draw a metric over the optimizer steps at which it was evaluated.

    Args:
        summary: The comparison.
        metric: One of its metrics; the curve `eval_<name>` is drawn.

    Returns:
        The chart, or None where no run has such a curve, or hardly one was evaluated more than once.
    """
    shown = metric_format(summary, metric)
    lines = _lines(summary, f"eval_{metric.name}", shown.factor)
    best = max if metric.higher_is_better else min
    return _learning_chart(f"learning-{_slug(summary, metric)}", shown, lines, best)


def _learning_chart(
    key: str, shown: MetricFormat, lines: Sequence[_Line], best: Callable[..., _Line] | None
) -> Chart | None:
    """The chart of a learning curve; `best` picks the line with the best end, where that is known."""
    curves = sum(len(line.steps) > 1 for line in lines)
    if curves == 0 or curves == 1 < len(lines):  # evaluated at the end alone, which the table tells
        return None
    ends = [f"{line.name} {number(float(line.mean[-1]), shown.decimals)}{shown.percent_sign}" for line in lines]
    finding = f"At the last evaluation: {', '.join(ends)}."
    if best and len(lines) > 1:
        finding += f" {best(lines, key=lambda line: float(line.mean[-1])).name} ended best."
    title = f"{shown.heading} while training"
    clipped, panel = _draw_lines(lines, key, title, finding, log=False)
    reading = _band_note(lines) + (
        " The first values lie outside the axis, so that the last ones can be told apart." if clipped else ""
    )
    table = _line_table(title, lines, shown.decimals)
    return Chart(key, title, finding, reading, [panel], table, [line.position for line in lines])


def training_chart(summary: Summary, curve: str, title: str, reading: str, *, percent: bool = False) -> Chart | None:
    """Draw a quantity of the training steps, averaged over stretches of them.

    Args:
        summary: The comparison.
        curve: Key in `Run.curves`, for example `divergence`.
        title: Title of the chart.
        reading: What the quantity is, in one or two sentences.
        percent: Whether it is a fraction, shown times 100; all else has a logarithmic axis where it is positive.

    Returns:
        The chart, or None where no run has such a curve with a value other than 0.
    """
    lines = [line for line in _lines(summary, curve, 100.0 if percent else 1.0, TRAINING_BINS) if line.mean.any()]
    if not lines:
        return None
    tails = [float(line.mean[-max(1, len(line.mean) // 10) :].mean()) for line in lines]
    sign = "%" if percent else ""
    ends = [f"{line.name} {tick(float(f'{tail:.3g}'))}{sign}" for line, tail in zip(lines, tails, strict=True)]
    finding = f"Mean over the last tenth of the training: {', '.join(ends)}."
    key = f"training-{curve.replace('_', '-')}"
    log = not percent and all(bool((line.mean > 0).all()) for line in lines)
    _, panel = _draw_lines(lines, key, title, finding, log=log)
    scale = " The vertical axis is logarithmic." if log else ""
    decimals = min(6, max(3, 2 - math.floor(math.log10(min(abs(t) for t in tails if t) if any(tails) else 1))))
    table = _line_table(title, lines, decimals)
    full = f"{reading} {_band_note(lines)}{scale}"
    return Chart(key, title, finding, full, [panel], table, [line.position for line in lines])


def difference_chart(summary: Summary, metric: Metric) -> Chart | None:
    """Draw each seed's difference to `plain`, one dot per seed, with mean and interval.

    Args:
        summary: The comparison.
        metric: One of its metrics.

    Returns:
        The chart, or None where no arm has a difference.
    """
    shown = metric_format(summary, metric)
    seeds = sorted({run.seed for run in summary.runs})
    rows: list[_Row] = []
    told: list[str] = []
    table: list[list[str]] = []
    for position, arm in enumerate(summary.arms):
        difference = arm.differences.get(metric.name)
        if difference is None or not difference.per_seed:
            continue
        if math.isfinite(difference.mean):
            rows.append(_scaled(position, arm.name, difference.per_seed.values(), difference, shown.factor))
        signed = [value if metric.higher_is_better else -value for value in difference.per_seed.values()]
        better = sum(value > 0 for value in signed)
        p = p_value(difference.p_value)
        mean = ", ".join(part for part in (shown.value(difference.mean, sign=True), p) if part)
        told.append(f"{arm.name} was better in {better} of {count(len(signed), 'seed')} (mean {mean})")
        per_seed = {seed: shown.value(value, sign=True) for seed, value in difference.per_seed.items()}
        table.append(
            [
                arm.name,
                *(per_seed.get(seed, MISSING) for seed in seeds),
                shown.interval(difference, sign=True),
            ]
        )
    if not rows:
        return None
    base = summary.arms[0].name
    title = f"{shown.label}: each seed against {base}"
    finding = f"Against {base} with the same seed, {'; '.join(told)}."
    side = "right" if metric.higher_is_better else "left"
    key = f"difference-{_slug(summary, metric)}"
    heading = f"{shown.label} minus {base}{',' if shown.unit else ''}{shown.unit}"
    panel = _draw_rows(rows, key, title, finding, heading, toward=side)
    reading = f"{_mark_note(rows)} Better is to the {side}."
    columns = ["Arm", *(f"Seed {seed}" for seed in seeds), "Mean [95% interval]"]
    caption = f"{title}{' (points)' if shown.unit else ''}"
    return Chart(key, title, finding, reading, [panel], Table(caption, columns, table), [])


def value_chart(summary: Summary, metric: Metric, companions: Iterable[Metric], reading: str) -> Chart | None:
    """Draw each seed's value of one metric per arm, and list related metrics in its table.

    Args:
        summary: The comparison.
        metric: The metric to draw, on an axis from 0.
        companions: Metrics that are only listed.
        reading: What the chart tells.

    Returns:
        The chart, or None where no arm has the metric.
    """
    shown = metric_format(summary, metric)
    rows = [
        _scaled(
            position,
            arm.name,
            [r.metrics[metric.name] for r in summary.runs if r.arm == arm.name and metric.name in r.metrics],
            arm.metrics[metric.name],
            shown.factor,
        )
        for position, arm in enumerate(summary.arms)
        if metric.name in arm.metrics and math.isfinite(arm.metrics[metric.name].mean)
    ]
    if not rows:
        return None
    listed = [metric, *companions]
    formats = {each.name: metric_format(summary, each) for each in listed}
    table: list[list[str]] = []
    for arm in (summary.arms[row.position] for row in rows):
        others = [arm.metrics.get(each.name) for each in listed[1:]]
        means = [
            formats[each.name].value(None if other is None else other.mean)
            for each, other in zip(listed[1:], others, strict=True)
        ]
        table.append([arm.name, shown.interval(arm.metrics[metric.name]), *means])
    told = [
        f"{arm.name} {shown.value(arm.metrics[metric.name].mean)}" for arm in summary.arms if metric.name in arm.metrics
    ]
    best = (max if metric.higher_is_better else min)(rows, key=lambda row: row.interval.mean)
    extreme = "highest" if metric.higher_is_better else "lowest"
    finding = f"{shown.label}: {', '.join(told)}. {best.name} has the {extreme} mean."
    key = f"value-{_slug(summary, metric)}"
    title = f"{shown.heading} of each arm"
    side = "right" if metric.higher_is_better else "left"
    panel = _draw_rows(rows, key, title, finding, shown.heading, toward=side)
    note = f"{reading} {_mark_note(rows)}"
    columns = ["Arm", *(formats[each.name].heading for each in listed)]
    caption = f"{shown.label}: mean and 95% interval; beside it the means of related metrics"
    return Chart(key, title, finding, note, [panel], Table(caption, columns, table), [], wide=True)


def reliability_chart(summary: Summary) -> Chart | None:
    """Draw for each arm how often its predictions are right at each confidence, pooled over seeds.

    Args:
        summary: The comparison.

    Returns:
        One panel for each arm, or None where no run has reliability bins.
    """
    panels: list[Markup] = []
    told: list[str] = []
    table: list[list[str]] = []
    pooled_seeds = 0
    for position, arm in enumerate(summary.arms):
        runs = [run.reliability for run in summary.runs if run.arm == arm.name and run.reliability]
        pooled_seeds = max(pooled_seeds, len(runs))
        pooled = _pool(runs)
        total = sum(each.count for each in pooled)
        if not total:
            continue
        full = [each for each in pooled if each.confidence is not None and each.accuracy is not None]
        confidence = sum(each.count * (each.confidence or 0) for each in full) / total
        accuracy = sum(each.count * (each.accuracy or 0) for each in full) / total
        gap = 100 * (confidence - accuracy)
        words = (
            f"{arm.name} was right in {100 * accuracy:.1f}% at a mean confidence of {100 * confidence:.1f}% "
            f"({'too sure' if gap > 0 else 'too unsure'} by {abs(gap):.1f} points)"
        )
        told.append(f"{arm.name} {number(gap, 1, sign=True)}")
        panels.append(_draw_reliability(pooled, f"reliability-{position}", arm.name, f"{words}.", position))
        for i, each in enumerate(pooled):
            edges = f"{100 * i / len(pooled):.0f}{MISSING}{100 * (i + 1) / len(pooled):.0f}%"
            table.append([arm.name, edges, f"{each.count:,}", _percent(each.confidence), _percent(each.accuracy)])
    if not panels:
        return None
    finding = f"Mean confidence minus the share that was right, in points: {', '.join(told)}. Above 0 is too sure."
    reading = (
        "Across: the confidence of a prediction; up: the share of such predictions that were right. On the "
        "diagonal the two agree; below it, the arm is too sure. A hollow mark stands for fewer than 20 "
        "predictions. The bars count the predictions, on a logarithmic axis."
    )
    columns = ["Arm", "Confidence", "Predictions", "Mean confidence", "Right"]
    caption = f"Reliability: predictions{' of all seeds' if pooled_seeds > 1 else ''}, by confidence"
    return Chart(
        "reliability",
        "Confidence against correctness",
        finding,
        reading,
        panels,
        Table(caption, columns, table),
        [],
        wide=True,
    )


def _lines(summary: Summary, curve: str, factor: float, bins: int | None = None) -> list[_Line]:
    """Collect a curve of all finished runs as one line for each arm."""
    per_arm: list[tuple[int, str, list[Curve]]] = []
    for position, arm in enumerate(summary.arms):
        runs = [run for run in summary.runs if run.arm == arm.name and run.status == "finished"]
        curves = [run.curves[curve] for run in runs if curve in run.curves and run.curves[curve].steps]
        if curves:
            per_arm.append((position, arm.name, curves))
    last = max((each.steps[-1] for _, _, curves in per_arm for each in curves), default=0)
    # The same stretches for every arm, so that a row of the table means the same steps in all its columns.
    stretch = math.ceil(last / bins) if bins else None
    lines: list[_Line] = []
    for position, name, curves in per_arm:
        points = [_points(each, stretch) for each in curves]
        steps = sorted(set.intersection(*(set(each) for each in points)))
        if not steps:
            continue
        spread = [interval([each[step] for each in points]) for step in steps]
        mean = factor * np.array([each.mean for each in spread])
        low = factor * np.array([each.mean if each.low is None else each.low for each in spread])
        high = factor * np.array([each.mean if each.high is None else each.high for each in spread])
        lines.append(_Line(position, name, len(curves), np.array(steps, float), mean, low, high))
    return lines


def _points(curve: Curve, stretch: int | None) -> dict[int, float]:
    """Finite values by step; with a stretch, their means by the end of the stretch that they fall into."""
    groups: dict[int, list[float]] = {}
    for step, value in zip(curve.steps, curve.values, strict=True):
        if math.isfinite(value):
            at = max(1, math.ceil(step / stretch)) * stretch if stretch else step
            groups.setdefault(at, []).append(value)
    return {step: math.fsum(values) / len(values) for step, values in groups.items()}


def _draw_lines(lines: Sequence[_Line], key: str, title: str, description: str, *, log: bool) -> tuple[bool, Markup]:
    """Draw lines with bands; also say whether early values were left outside the axis."""
    with drawing(WIDTH, HEIGHT) as figure:
        axes = figure.add_subplot()
        for i, line in enumerate(lines):
            style = arm_style(line.position)
            if line.seeds >= SEEDS_OF_A_BAND:
                floor = line.mean / 10 if log else line.low
                axes.fill_between(
                    line.steps,
                    np.maximum(line.low, floor),
                    line.high,
                    color=style.colour,
                    alpha=0.14,
                    linewidth=0,
                )
            every = max(1, len(line.steps) // 6)
            axes.plot(
                line.steps,
                line.mean,
                color=style.colour,
                linestyle=(0, style.dashes) if style.dashes else "-",
                marker=style.marker,
                # Each arm marks other points, so that markers on equal curves do not hide each other.
                markevery=(i * every // len(lines), every),
                markeredgecolor=SURFACE,
                markeredgewidth=0.8,
            )
        if log:
            _log_axis(axes, [float(v) for line in lines for v in line.mean])
        clipped = not log and _focus(axes, lines)
        axes.set_xlabel("Optimizer step")
        axes.set_xlim(left=0)
        axes.grid(visible=False, axis="x")
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True, steps=ROUND_STEPS))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,.0f}"))
        if not log:
            axes.yaxis.set_major_locator(MaxNLocator(5, steps=ROUND_STEPS))
            axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: tick(y)))
        return clipped, inline_svg(figure, key, title, description)


def _log_axis(axes: Axes, values: Sequence[float]) -> None:
    """Make the vertical axis logarithmic around some positive values, with ticks on the shortest range."""
    axes.set_yscale("log")
    low, high = min(values) / 1.3, max(values) * 1.3
    axes.set_ylim(low, high)
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0,) if high / low > 100 else (1.0, 2.0, 5.0)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: tick(y)))
    axes.yaxis.set_minor_formatter(NullFormatter())


def _focus(axes: Axes, lines: Sequence[_Line]) -> bool:
    """Fit the vertical axis to the second half of training if the first would flatten it, and enough is left to see."""
    start = 0.5 * min(float(line.steps[-1]) for line in lines)
    if any((line.steps > start).sum() < POINTS_OF_A_HALF for line in lines):
        return False
    ends = [(e.low, e.high) if e.seeds >= SEEDS_OF_A_BAND else (e.mean, e.mean) for e in lines]
    late = np.concatenate([end[e.steps > start] for e, both in zip(lines, ends, strict=True) for end in both])
    whole = np.concatenate([line.mean for line in lines])
    low, high = float(late.min()), float(late.max())
    if high <= low or np.ptp(whole) < 2.5 * (high - low):
        return False
    margin = 0.06 * (high - low)
    axes.set_ylim(low - margin, high + margin)
    return bool(((whole < low - margin) | (whole > high + margin)).any())


def _draw_rows(rows: Sequence[_Row], key: str, title: str, description: str, heading: str, *, toward: str) -> Markup:
    """Draw one row for each arm: its name, a dot for each seed, and the mean with its interval."""
    with drawing(WIDTH, 62 + ROW_HEIGHT * len(rows)) as figure:
        axes = figure.add_subplot()
        axes.axvline(0, color=INK, linewidth=1.2)
        for line, row in enumerate(rows):
            style, y = arm_style(row.position), -float(line)
            axes.plot(
                row.dots,
                np.full(len(row.dots), y + 0.02),
                linestyle="none",
                marker=style.marker,
                markersize=5.5,
                color=style.colour,
                alpha=0.75,
                markeredgewidth=0,
            )
            _mean_bar(axes, row.interval, y - 0.27, style)
            axes.annotate(
                short(row.name),
                (0, y + 0.34),
                xycoords=("axes fraction", "data"),
                xytext=(5, 0),
                textcoords="offset points",
                ha="left",
                va="center",
                color=style.colour,
                weight="bold",
            )
        axes.set_ylim(0.6 - len(rows), 0.62)
        axes.set_yticks([])
        axes.grid(visible=False, axis="y")
        values = [0.0, *(v for row in rows for v in row.dots)]
        values += [end for row in rows for end in (row.interval.low, row.interval.high) if end is not None]
        reach = (max(values) - min(values)) or 1.0
        left = 0.0 if min(values) >= 0 else min(values) - 0.06 * reach
        axes.set_xlim(left, max(values) + 0.06 * reach)
        axes.xaxis.set_major_locator(MaxNLocator(5, steps=ROUND_STEPS))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: tick(x)))
        axes.set_xlabel(heading)
        arrow = "better \N{RIGHTWARDS ARROW}" if toward == "right" else "\N{LEFTWARDS ARROW} better"
        axes.set_title(arrow, loc="right" if toward == "right" else "left", color=MUTED, weight="normal")
        return inline_svg(figure, key, title, description)


def _mean_bar(axes: Axes, interval: Interval, y: float, style: ArmStyle) -> None:
    """Draw an interval as a bar with a tick at the mean."""
    if interval.low is not None and interval.high is not None:
        axes.plot([interval.low, interval.high], [y, y], color=style.colour, linewidth=3, solid_capstyle="butt")
    axes.plot([interval.mean] * 2, [y - 0.1, y + 0.1], color=style.colour, linewidth=3, solid_capstyle="butt")


def _draw_reliability(bins: Sequence[ReliabilityBin], key: str, name: str, description: str, position: int) -> Markup:
    """Draw one arm's reliability diagram above the counts of its bins."""
    style = arm_style(position)
    full = [each for each in bins if each.confidence is not None and each.accuracy is not None]
    with drawing(160, 210) as figure:
        upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
        upper.plot([0, 1], [0, 1], color=MUTED, linewidth=1, linestyle=(0, (3, 3)))
        x = [each.confidence or 0.0 for each in full]
        y = [each.accuracy or 0.0 for each in full]
        upper.plot(x, y, color=style.colour, linewidth=1.4)
        for each, at_x, at_y in zip(full, x, y, strict=True):
            upper.plot(
                [at_x],
                [at_y],
                marker=style.marker,
                color=style.colour,
                markerfacecolor=SURFACE if each.count < 20 else style.colour,
                markeredgewidth=1.2,
            )
        edges = np.linspace(0, 1, len(bins) + 1)
        lower.bar(
            edges[:-1],
            [each.count for each in bins],
            width=0.86 / len(bins),
            align="edge",
            color=style.colour,
        )
        lower.set_yscale("log")
        top = max(each.count for each in bins)
        lower.set_ylim(0.7, top * 2)
        lower.set_yticks([1, 10 ** math.floor(math.log10(top))] if top >= 10 else [1])
        lower.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v / 1000:g}k" if v >= 1000 else f"{v:g}"))
        lower.yaxis.set_minor_formatter(NullFormatter())
        upper.set_title(short(name, 20), color=style.colour, weight="bold")
        upper.set_ylim(-0.03, 1.03)
        upper.set_yticks([0, 0.5, 1], ["0", "50", "100%"])
        lower.set_xlim(-0.03, 1.03)
        lower.set_xticks([0, 0.5, 1], ["0", "50", "100%"])
        lower.set_xlabel("Confidence")
        for axes in (upper, lower):
            axes.grid(color=RULE)
        return inline_svg(figure, key, f"Reliability of {name}", description)


def _pool(runs: Sequence[Sequence[ReliabilityBin]]) -> list[ReliabilityBin]:
    """Join the bins of several runs: counts add up, means are weighted by them."""
    pooled: list[ReliabilityBin] = []
    for bins in zip(*runs, strict=True):
        total = sum(each.count for each in bins)
        pooled.append(
            ReliabilityBin(
                count=total,
                confidence=math.fsum(e.count * (e.confidence or 0) for e in bins) / total if total else None,
                accuracy=math.fsum(e.count * (e.accuracy or 0) for e in bins) / total if total else None,
            )
        )
    return pooled


def _line_table(title: str, lines: Sequence[_Line], decimals: int) -> Table:
    """The numbers of a line chart: a row for each step, a column for each arm."""
    caption = f"{title}: mean over seeds and 95% interval" if any(line.seeds > 1 for line in lines) else title
    cells: list[dict[float, str]] = []
    for line in lines:
        points = zip(line.steps.tolist(), line.mean, line.low, line.high, strict=True)
        cells.append(
            {
                step: number(mean, decimals)
                + (f" [{number(low, decimals)}, {number(high, decimals)}]" if line.seeds > 1 else "")
                for step, mean, low, high in points
            }
        )
    steps = sorted(set().union(*cells))
    rows = [[f"{step:,.0f}", *(column.get(step, MISSING) for column in cells)] for step in steps]
    return Table(caption, ["Step", *(line.name for line in lines)], rows)


def _scaled(position: int, name: str, dots: Iterable[float], interval: Interval, factor: float) -> _Row:
    """A row in the scale of the page."""
    low = None if interval.low is None else factor * interval.low
    high = None if interval.high is None else factor * interval.high
    scaled = Interval(mean=factor * interval.mean, low=low, high=high)
    return _Row(position, name, [factor * dot for dot in dots if math.isfinite(dot)], scaled)


def _band_note(lines: Sequence[_Line]) -> str:
    """What line and band are, given the number of seeds."""
    if any(line.seeds >= SEEDS_OF_A_BAND for line in lines):
        return "Lines are means over seeds, bands their 95% intervals."
    if any(line.seeds > 1 for line in lines):
        return "Lines are means over seeds; two seeds are too few for a band."
    return "One seed, hence no band."


def _mark_note(rows: Sequence[_Row]) -> str:
    """What marks and bars are, given the number of seeds."""
    if any(row.interval.low is not None for row in rows):
        return "One mark for each seed; the bar is the mean with its 95% interval."
    return "One seed, hence no interval."


def _slug(summary: Summary, metric: Metric) -> str:
    """Part of an id for a metric: its position, because a name may hold any character."""
    return str([each.name for each in summary.metrics].index(metric.name))


def _percent(value: float | None) -> str:
    """A fraction as a percentage with one decimal."""
    return MISSING if value is None else f"{100 * value:.1f}%"
