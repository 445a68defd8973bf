"""The report: one HTML page with everything in it, made from a summary and nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml
from markupsafe import Markup

from rdrop.report.charts import (
    Chart,
    difference_chart,
    learning_charts,
    reliability_chart,
    training_chart,
    value_chart,
)
from rdrop.report.cost_chart import cost_chart
from rdrop.report.exhibits import Source, views
from rdrop.report.number_format import MISSING, MetricFormat, count, metric_format, number, p_value, ratio
from rdrop.report.svg import arm_style
from rdrop.report.templates import resource, template
from rdrop.toolkit.summary import Arm, Difference, Metric, Run, Summary

STRIP_WIDTH = 200.0
COLUMNS_WITH_DIFFERENCE = 2
COLUMNS_WITHOUT_DIFFERENCE = 2


@dataclass(frozen=True)
class Strip:
    """Where the zero, the mean and the interval of a difference lie on a strip 200 units wide."""

    zero: float
    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Fact:
    """One of the numbers under the headline."""

    label: str
    value: str
    unit: str
    detail: str
    verdict: str
    tone: str
    strip: Strip | None
    others: list[tuple[str, str]]


@dataclass(frozen=True)
class Cell:
    """A table cell: the number, and beneath it what qualifies it."""

    value: str
    details: list[str]
    tone: str = ""


@dataclass(frozen=True)
class Row:
    """One arm in the table; an arm without a finished seed has no cells."""

    position: int
    arm: Arm
    seeds: str
    cells: list[Cell]


@dataclass(frozen=True)
class Section:
    """Charts under one heading."""

    key: str
    title: str
    charts: list[Chart]


def write_report(summary: Summary, path: Path) -> None:
    """Write the report of a comparison as one self-contained HTML file.

    Args:
        summary: The comparison.
        path: File to write, for example `report.html`; an existing file is replaced.

    Raises:
        OSError: If the file cannot be written.
    """
    # Half of a surrogate pair, which a file name may hold, has no form in UTF-8 and becomes a question mark.
    path.write_text(render_report(summary), encoding="utf-8", errors="replace")


def render_report(summary: Summary) -> str:
    """Render the report of a comparison.

    The page needs no network, no script and no other file. Equal summaries give equal pages.

    Args:
        summary: The comparison; failed arms, single seeds and missing curves are shown as such.

    Returns:
        The HTML document.

    Raises:
        ValueError: If the summary has no arm or no metric, or one of its confusion matrices or listings is ragged.

    >>> from rdrop.toolkit.summary import Environment, Interval, Timing
    >>> accuracy = Metric(
    ...     name="accuracy", label="accuracy", higher_is_better=True, percent=True, explanation="Share right."
    ... )
    >>> plain = Arm(
    ...     name="plain", description="One pass.", passes=1, alpha=0.0, strategy="single", optimizer_steps=10,
    ...     step_compute=1.0, total_compute=1.0, seeds=[0], differences={},
    ...     metrics={"accuracy": Interval(mean=0.9, low=None, high=None)},
    ... )
    >>> page = render_report(
    ...     Summary(
    ...         title="A <small> run", task="image-classification", data="Ten images.", recipe={"seeds": [0]},
    ...         metrics=[accuracy], arms=[plain], runs=[], headline="One arm alone tells nothing.",
    ...         timing=Timing(step_ms={}, step_ratio={}, run_seconds={}, jobs=1),
    ...         environment=Environment(created="", machine="", versions={}, command="rdrop compare"),
    ...     )
    ... )
    >>> "<h1>A &lt;small&gt; run</h1>" in page, "90.00" in page
    (True, True)
    """
    if not summary.arms or not summary.metrics:
        found = f"{count(len(summary.arms), 'arm')} and {count(len(summary.metrics), 'metric')}"
        raise ValueError(f"The summary has {found}; a report needs at least one of each. Make it with `rdrop compare`.")
    main = summary.metrics[:COLUMNS_WITH_DIFFERENCE]
    brief = summary.metrics[COLUMNS_WITH_DIFFERENCE : COLUMNS_WITH_DIFFERENCE + COLUMNS_WITHOUT_DIFFERENCE]
    shown = _shown_runs(summary)
    return template("page.html.jinja").render(
        summary=summary,
        css=Markup(resource("page.css")),
        base=summary.arms[0],
        facts=_facts(summary),
        main=[metric_format(summary, metric) for metric in main],
        brief=[metric_format(summary, metric) for metric in brief],
        rows=[_row(summary, position, main, brief) for position in range(len(summary.arms))],
        all_formats=[(metric, metric_format(summary, metric)) for metric in summary.metrics],
        failures=[run for run in summary.runs if run.status == "failed"],
        styles=[arm_style(position) for position in range(len(summary.arms))],
        names=[arm.name for arm in summary.arms],
        sections=_sections(summary),
        exhibits=views([Source(run.arm, arm_style(position), run.exhibits) for position, run in shown]),
        shown_runs=_named_runs([run for _, run in shown]),
        recipe=yaml.safe_dump(summary.recipe, sort_keys=False, allow_unicode=True),
        seconds=sum(seconds for by_seed in summary.timing.run_seconds.values() for seconds in by_seed.values()),
        seeds=sorted({run.seed for run in summary.runs}),
        p_value=p_value,
        ratio=ratio,
        count=count,
    )


def _contrast(summary: Summary) -> Arm | None:
    """The arm that the page is about: the first that weighs the divergence, else the first after `plain`."""
    others = summary.arms[1:]
    return next((arm for arm in others if arm.alpha > 0), others[0] if others else None)


def _facts(summary: Summary) -> list[Fact]:
    """The difference in the leading metrics, and what it cost."""
    arm = _contrast(summary)
    if arm is None:
        return []
    if not arm.seeds:
        failed = f"All of its runs failed ({count(len(arm.failed), 'seed')}); their errors stand under the table."
        return [Fact(arm.name, "No result", "", failed, "", "worse", None, [])]
    facts = [
        _difference_fact(summary, arm, metric)
        for metric in summary.metrics[:COLUMNS_WITH_DIFFERENCE]
        if metric.name in arm.differences
    ]
    return [*facts, _cost_fact(summary, arm)]


def _difference_fact(summary: Summary, arm: Arm, metric: Metric) -> Fact:
    """How far an arm moved one metric, with the other arms for scale."""
    shown = metric_format(summary, metric)
    difference = arm.differences[metric.name]
    verdict, tone = _verdict(difference, metric)
    return Fact(
        label=f"{shown.label}, {arm.name} minus {summary.arms[0].name}",
        value=shown.value(difference.mean, sign=True),
        unit=shown.unit.strip(),
        detail=_surety(difference, shown),
        verdict=verdict,
        tone=tone,
        strip=_strip(difference),
        others=[
            (other.name, _signed(other.differences[metric.name], shown))
            for other in summary.arms
            if other is not arm and metric.name in other.differences
        ],
    )


def _cost_fact(summary: Summary, arm: Arm) -> Fact:
    """What a training step and a whole run of an arm cost."""
    measured = summary.timing.step_ratio.get(arm.name)
    counted = f"{ratio(arm.step_compute)} the operations of a step, {ratio(arm.total_compute)} those of a whole run"
    return Fact(
        label=f"Cost of {arm.name}, against {summary.arms[0].name}",
        value=ratio(measured.mean if measured else arm.step_compute),
        unit="time of a step" if measured else "operations of a step",
        detail=counted,
        verdict="",
        tone="",
        strip=None,
        others=[
            (other.name, f"{ratio(other.total_compute)} in a whole run")
            for other in summary.arms[1:]
            if other is not arm
        ],
    )


def _signed(difference: Difference, shown: MetricFormat) -> str:
    """A difference with its interval and p-value in one line."""
    p = p_value(difference.p_value)
    return shown.interval(difference, sign=True) + (f", {p}" if p else "")


def _surety(difference: Difference, shown: MetricFormat) -> str:
    """How sure a difference is: interval, p-value and seeds."""
    seeds = count(len(difference.per_seed), "seed")
    if difference.low is None or difference.high is None:
        return f"{seeds}: no interval"
    ends = f"95% interval {shown.value(difference.low, sign=True)} to {shown.value(difference.high, sign=True)}"
    return " · ".join(part for part in (ends, p_value(difference.p_value), seeds) if part)


def _verdict(difference: Difference, metric: Metric) -> tuple[str, str]:
    """What a difference amounts to, in words and as a tone of the page."""
    if len(difference.per_seed) < 2:
        return "One seed cannot tell", "open"
    if difference.p_value is None or difference.low is None or difference.high is None:
        return "No clear difference", "open"
    if not (difference.low > 0 or difference.high < 0):  # so written, not a number is unclear too
        return "No clear difference", "open"
    if (difference.low > 0) == metric.higher_is_better:
        return "Better", "better"
    return "Worse", "worse"


def _strip(difference: Difference) -> Strip | None:
    """Place a difference on a strip with zero in its middle."""
    if difference.low is None or difference.high is None:
        return None
    reach = 1.15 * max(abs(difference.low), abs(difference.high))
    if not 0 < reach < float("inf"):
        return None

    def at(value: float) -> float:
        return round(STRIP_WIDTH * (0.5 + value / reach / 2), 2)

    return Strip(at(0), at(difference.mean), at(difference.low), at(difference.high))


def _row(summary: Summary, position: int, main: list[Metric], brief: list[Metric]) -> Row:
    """One arm of the table."""
    arm = summary.arms[position]
    total = len(arm.seeds) + len(arm.failed)
    seeds = count(total, "seed") if not arm.failed else f"{len(arm.seeds)} of {count(total, 'seed')} finished"
    if not arm.seeds:
        return Row(position, arm, seeds, [])
    cells: list[Cell] = []
    for metric in main:
        cells += [_value_cell(summary, arm, metric), _difference_cell(summary, arm, metric, position)]
    cells += [_value_cell(summary, arm, metric) for metric in brief]
    measured = summary.timing.step_ratio.get(arm.name)
    if measured is None:
        time = Cell(MISSING, [])
    elif measured.low is None or measured.high is None:
        time = Cell(ratio(measured.mean), [])
    else:
        time = Cell(ratio(measured.mean), [f"[{number(measured.low, 2)}, {number(measured.high, 2)}]"])
    compute = Cell(ratio(arm.step_compute), [f"{ratio(arm.total_compute)} in all"])
    return Row(position, arm, seeds, [*cells, time, compute])


def _value_cell(summary: Summary, arm: Arm, metric: Metric) -> Cell:
    """Mean and interval of a metric."""
    interval = arm.metrics.get(metric.name)
    if interval is None:
        return Cell(MISSING, [])
    shown = metric_format(summary, metric)
    return Cell(shown.value(interval.mean), [part for part in (shown.span(interval),) if part])


def _difference_cell(summary: Summary, arm: Arm, metric: Metric, position: int) -> Cell:
    """Difference to `plain` with interval, p-value and verdict."""
    difference = arm.differences.get(metric.name)
    if difference is None:
        return Cell(MISSING, []) if position else Cell("", ["reference"])
    shown = metric_format(summary, metric)
    verdict, tone = _verdict(difference, metric)
    surety = ", ".join(
        part for part in (p_value(difference.p_value), "" if tone == "open" else verdict.lower()) if part
    )
    return Cell(
        shown.value(difference.mean, sign=True),
        [part for part in (shown.span(difference), surety) if part],
        tone,
    )


def _sections(summary: Summary) -> list[Section]:
    """All charts for which the summary has the numbers."""
    leading = summary.metrics[:COLUMNS_WITH_DIFFERENCE]
    reliability, consistency = reliability_chart(summary), _consistency_chart(summary, leading)
    named = {"Confidence": reliability, "Consistency": consistency}
    trust = " and ".join(name for name, chart in named.items() if chart).capitalize()
    groups = [
        ("training", "While training", [*learning_charts(summary), *training_charts(summary)]),
        ("cost", "Gain against cost", [cost_chart(summary, metric) for metric in leading]),
        ("seeds", "Seed by seed", [difference_chart(summary, metric) for metric in leading]),
        ("trust", trust, [reliability, consistency]),
    ]
    sections = [Section(key, title, [chart for chart in charts if chart]) for key, title, charts in groups]
    return [section for section in sections if section.charts]


def training_charts(summary: Summary) -> list[Chart | None]:
    """Draw the quantities of the training steps.

    Args:
        summary: The comparison.

    Returns:
        Charts of the divergence, the agreement, the task loss and the loss; None for those that say nothing.
    """
    divergence = training_chart(
        summary,
        "divergence",
        "Divergence between the passes while training",
        "How far apart the answers of two dropout masks are on the same training batch.",
    )
    agreement = training_chart(
        summary,
        "agreement",
        "Agreement of the passes while training (%)",
        "How often all passes give the same most probable answer, on the last training batch before each log.",
        percent=True,
    )
    task_loss = training_chart(
        summary,
        "task_loss",
        "Task loss while training",
        "The loss without the divergence, on training batches.",
    )
    if all(run.curves.get("train_loss") == run.curves.get("task_loss") for run in summary.runs):
        return [divergence, agreement, task_loss]
    train_loss = training_chart(
        summary,
        "train_loss",
        "Loss while training",
        "What is minimised on training batches: the task loss and, weighted by alpha, the divergence. Arms with "
        "another alpha minimise something else, so it tells how a run went, not which arm is better.",
    )
    return [divergence, agreement, task_loss, train_loss]


def _consistency_chart(summary: Summary, leading: list[Metric]) -> Chart | None:
    """How far dropout-off predictions are from averaged dropout-on ones, in whatever metric says so."""
    by_name = {metric.name: metric for metric in summary.metrics}
    gap = next((metric for name, metric in by_name.items() if name.startswith("consistency_")), None)
    if gap is None:
        return None
    related = [by_name[name] for name in ("agreement", *_with_averaged(leading)) if name in by_name]
    return value_chart(
        summary,
        gap,
        related,
        "How far the prediction with dropout switched off is from the average of many predictions with dropout on.",
    )


def _with_averaged(metrics: list[Metric]) -> list[str]:
    """Names of some metrics, each followed by that of its value for averaged predictions."""
    return [name for metric in metrics for name in (metric.name, f"{metric.name}_averaged")]


def _shown_runs(summary: Summary) -> list[tuple[int, Run]]:
    """Of each arm that has exhibits, its place and the first run that finished with some."""
    shown: list[tuple[int, Run]] = []
    for position, arm in enumerate(summary.arms):
        runs = [run for run in summary.runs if run.arm == arm.name and run.status == "finished" and run.exhibits]
        shown += [(position, run) for run in runs[:1]]
    return shown


def _named_runs(runs: Sequence[Run]) -> str:
    """Which runs are shown, in a sentence."""
    seeds = sorted({run.seed for run in runs})
    if len(seeds) == 1:
        return f"From the run with seed {seeds[0]} of each arm."
    return f"From one run of each arm: {', '.join(f'{run.arm} with seed {run.seed}' for run in runs)}."
