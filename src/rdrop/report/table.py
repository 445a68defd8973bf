"""The tables that a comparison ends with on a terminal."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from rdrop.report.number_format import MISSING, MetricFormat, count, metric_format, p_value, ratio
from rdrop.report.page import COLUMNS_WITH_DIFFERENCE, COLUMNS_WITHOUT_DIFFERENCE
from rdrop.toolkit.summary import Arm, Interval, Metric, Summary


def comparison_table(summary: Summary) -> RenderableType:
    """A summary as text: what was gained, what it cost, failed runs, notes, and the headline last.

    Args:
        summary: What a comparison left behind.

    Returns:
        Something that a rich console prints, readable from 80 columns on.
    """
    seeds = count(len({run.seed for run in summary.runs}), "seed")
    return Group(
        Text(f"{summary.title}: {seeds}, mean with its 95% interval; below it the", style="bold"),
        Text("difference to plain, paired by seed, and its p-value", style="bold"),
        _gains(summary),
        _costs(summary),
        *(Text(line, style="red") for line in _failures(summary)),
        *(Text(f"Note: {note}", style="dim") for note in summary.notes),
        Text(f"\n{summary.headline}", style="bold"),
    )


def _formats(summary: Summary, metrics: list[Metric]) -> list[tuple[str, MetricFormat]]:
    return [(metric.name, metric_format(summary, metric)) for metric in metrics]


def _gains(summary: Summary) -> Table:
    """The leading metrics with their difference to `plain`."""
    leading = _formats(summary, summary.metrics[:COLUMNS_WITH_DIFFERENCE])
    table = Table("arm", *(form.heading for _, form in leading), show_lines=True)
    for arm in summary.arms:
        table.add_row(arm.name, *(_compared(arm, name, form) for name, form in leading))
    return table


def _compared(arm: Arm, metric: str, form: MetricFormat) -> Text:
    found, difference = arm.metrics.get(metric), arm.differences.get(metric)
    if found is None:
        return Text(MISSING)
    lines = [form.interval(found)]
    if difference is not None:
        lines += [form.interval(difference, sign=True), p_value(difference.p_value)]
    return Text("\n".join(filter(None, lines)))


def _costs(summary: Summary) -> Table:
    """The next metrics, and what each arm took as a ratio to `plain`."""
    shown = COLUMNS_WITH_DIFFERENCE + COLUMNS_WITHOUT_DIFFERENCE
    others = _formats(summary, summary.metrics[COLUMNS_WITH_DIFFERENCE:shown])
    table = Table("arm", "seeds", *(form.heading for _, form in others))
    for heading in ("compute of a run", "time of a step"):
        table.add_column(heading, justify="right")
    for arm in summary.arms:
        means = [form.value(found.mean) if (found := arm.metrics.get(name)) else MISSING for name, form in others]
        step: Interval | None = summary.timing.step_ratio.get(arm.name)
        time = MISSING if step is None else ratio(step.mean)
        table.add_row(arm.name, str(len(arm.seeds)), *means, ratio(arm.total_compute), time)
    return table


def _failures(summary: Summary) -> list[str]:
    return [f"{arm.name}, seed {seed}: failed: {error}" for arm in summary.arms for seed, error in arm.failed.items()]
