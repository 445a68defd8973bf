"""The page of trained models: one run, or several side by side, made from their records and nothing else."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import yaml
from markupsafe import Markup

from rdrop.report.charts import learning_charts, reliability_chart
from rdrop.report.exhibits import Source, views
from rdrop.report.number_format import MISSING, MetricFormat, count, metric_format, ratio
from rdrop.report.page import COLUMNS_WITH_DIFFERENCE, Fact, Section, training_charts
from rdrop.report.svg import arm_style
from rdrop.report.templates import resource, template
from rdrop.toolkit.single_run import TrainingRecord
from rdrop.toolkit.summary import Arm, Interval, Metric, Summary, Timing


@dataclass(frozen=True)
class MetricRow:
    """A metric with its value in each run."""

    heading: str
    direction: str
    values: list[str]


@dataclass(frozen=True)
class RunStory:
    """What was run, and what is to be known about it."""

    name: str
    record: TrainingRecord
    passes: str
    recipe: str


def write_training_report(records: Sequence[TrainingRecord], path: Path) -> None:
    """Write the report of trained models as one self-contained HTML file.

    Args:
        records: The runs, at least one.
        path: File to write, for example `report.html`; an existing file is replaced.

    Raises:
        OSError: If the file cannot be written.
    """
    # Half of a surrogate pair, which a file name may hold, has no form in UTF-8 and becomes a question mark.
    path.write_text(render_training_report(records), encoding="utf-8", errors="replace")


def render_training_report(records: Sequence[TrainingRecord]) -> str:
    """Render the report of trained models.

    The page needs no network, no script and no other file. Equal records give equal pages.

    Args:
        records: The runs in the order of the page, at least one.

    Returns:
        The HTML document.

    Raises:
        ValueError: If there is no record, or a confusion matrix or listing in one is ragged.

    >>> from rdrop.toolkit.summary import Environment, Run
    >>> accuracy = Metric(
    ...     name="accuracy", label="Accuracy", higher_is_better=True, percent=True, explanation="Share right."
    ... )
    >>> page = render_training_report([
    ...     TrainingRecord(
    ...         title="A <small> run", task="image-classification", data="Ten images.", recipe={}, split="test",
    ...         metrics=[accuracy], run=Run(arm="rdrop", seed=0, status="finished", metrics={"accuracy": 0.9}),
    ...         passes=2, alpha=1.0, step_compute=1.1, notes=[], seconds=3.0,
    ...         environment=Environment(created="", machine="", versions={}, command="rdrop train"),
    ...     )
    ... ])
    >>> "<h1>A &lt;small&gt; run</h1>" in page, "Accuracy 90.00% on the test split" in page
    (True, True)
    """
    if not records:
        raise ValueError("got no record of a run; a report needs at least one. Make it with `rdrop train`.")
    names = run_names(records)
    several = len(records) > 1
    runs = side_by_side(records, names)
    formats = {metric.name: metric_format(runs, metric) for metric in runs.metrics}
    styles = [arm_style(position) for position in range(len(records))]
    sources = [
        Source(name if several else "", style if several else None, record.run.exhibits)
        for name, style, record in zip(names, styles, records, strict=True)
    ]
    return template("training.html.jinja").render(
        css=Markup(resource("page.css")),
        title=runs.title,
        headline=_headline(records, formats),
        data=list(dict.fromkeys(record.data for record in records)),
        several=several,
        facts=_facts(records, names, runs.metrics, formats),
        names=names,
        styles=styles,
        splits=list(dict.fromkeys(record.split for record in records)),
        metrics=[(metric, formats[metric.name]) for metric in runs.metrics],
        rows=[_row(metric, records, formats[metric.name]) for metric in runs.metrics],
        unlike=_unlike(records),
        sections=_sections(runs),
        exhibits=views(sources),
        stories=[
            RunStory(name, record, _passes(record), yaml.safe_dump(record.recipe, sort_keys=False, allow_unicode=True))
            for name, record in zip(names, records, strict=True)
        ],
        count=count,
        ratio=ratio,
    )


def run_names(records: Sequence[TrainingRecord]) -> list[str]:
    """The shortest names that tell some runs apart.

    Args:
        records: The runs.

    Returns:
        The arm of each, with as much of alpha, seed and title as is needed; a number where they are equal in all.
    """
    schemes: list[Callable[[TrainingRecord], str]] = [
        lambda record: record.run.arm,
        lambda record: f"{record.run.arm}, alpha {record.alpha:g}",
        lambda record: f"{record.run.arm}, seed {record.run.seed}",
        lambda record: f"{record.run.arm}, alpha {record.alpha:g}, seed {record.run.seed}",
        lambda record: f"{record.title}: {record.run.arm}, alpha {record.alpha:g}, seed {record.run.seed}",
    ]
    for scheme in schemes:
        names = [scheme(record) for record in records]
        if len(set(names)) == len(names):
            return names
    return [f"{index}. {scheme(record)}" for index, record in enumerate(records, start=1)]


def side_by_side(records: Sequence[TrainingRecord], names: Sequence[str]) -> Summary:
    """Runs in the form of a comparison, each as an arm with one seed, so that its charts can draw them.

    Args:
        records: The runs, at least one.
        names: Their names.

    Returns:
        A comparison without differences, times and headline.
    """
    metrics = {metric.name: metric for record in records for metric in record.metrics}
    titles = list(dict.fromkeys(record.title for record in records))
    return Summary(
        title=titles[0] if len(titles) == 1 else f"{len(records)} trained models",
        task=records[0].task,
        data=records[0].data,
        recipe={},
        metrics=[metric for name, metric in metrics.items() if any(name in record.run.metrics for record in records)],
        arms=[_as_arm(record, name) for record, name in zip(records, names, strict=True)],
        runs=[record.run.model_copy(update={"arm": name}) for record, name in zip(records, names, strict=True)],
        headline="",
        timing=Timing(step_ms={}, step_ratio={}, run_seconds={}, jobs=1),
        environment=records[0].environment,
    )


def _as_arm(record: TrainingRecord, name: str) -> Arm:
    return Arm(
        name=name,
        description="",
        passes=record.passes,
        alpha=record.alpha,
        strategy="",
        optimizer_steps=record.run.optimizer_steps,
        step_compute=record.step_compute,
        total_compute=record.step_compute,
        seeds=[record.run.seed],
        metrics={key: Interval(mean=value, low=None, high=None) for key, value in record.run.metrics.items()},
        differences={},
    )


def _headline(records: Sequence[TrainingRecord], formats: dict[str, MetricFormat]) -> str:
    """What the page shows, in a sentence."""
    if len(records) > 1:
        return (
            f"{len(records)} trained models side by side, one run each: another seed may turn their order around. "
            "To learn which way of training is better, repeat it over several seeds with rdrop compare."
        )
    (record,) = records
    told = [
        f"{formats[metric.name].label} {_value(record, metric, formats)}"
        for metric in record.metrics
        if metric.name in record.run.metrics
    ][:COLUMNS_WITH_DIFFERENCE]
    return f"{', '.join(told)} on the {record.split} split." if told else "The run has no metrics."


def _value(record: TrainingRecord, metric: Metric, formats: dict[str, MetricFormat]) -> str:
    """A metric of a run with its percent sign."""
    value = record.run.metrics.get(metric.name)
    if value is None:
        return MISSING
    return formats[metric.name].value(value) + formats[metric.name].percent_sign


def _facts(
    records: Sequence[TrainingRecord],
    names: Sequence[str],
    metrics: Sequence[Metric],
    formats: dict[str, MetricFormat],
) -> list[Fact]:
    """The leading metrics, and what the training took: the first run at large, the others below it."""
    first, *others = zip(names, records, strict=True)
    name, record = first
    of_first = f" of {name}" if others else ""
    facts = []
    for metric in metrics[:COLUMNS_WITH_DIFFERENCE]:
        shown = formats[metric.name]
        facts.append(
            Fact(
                label=f"{shown.label}{of_first}",
                value=shown.value(record.run.metrics.get(metric.name)),
                unit=shown.percent_sign,
                detail=f"On the {record.split} split. {'Higher' if metric.higher_is_better else 'Lower'} is better.",
                verdict="",
                tone="",
                strip=None,
                others=[(other, _value(held, metric, formats)) for other, held in others],
            )
        )
    compute = f", {ratio(record.step_compute)} the operations of a plain step" if record.passes > 1 else ""
    training = Fact(
        label=f"Training{of_first}",
        value=f"{record.run.optimizer_steps:,}",
        unit="optimizer steps",
        detail=f"{_passes(record)} in each{compute}.",
        verdict="",
        tone="",
        strip=None,
        others=[(other, f"{held.run.optimizer_steps:,} steps, {_passes(held)}") for other, held in others],
    )
    return [*facts, training]


def _passes(record: TrainingRecord) -> str:
    return "1 pass" if record.passes == 1 else f"{record.passes} passes"


def _row(metric: Metric, records: Sequence[TrainingRecord], shown: MetricFormat) -> MetricRow:
    return MetricRow(
        shown.heading,
        f"{'higher' if metric.higher_is_better else 'lower'} is better",
        [shown.value(record.run.metrics.get(metric.name)) for record in records],
    )


def _unlike(records: Sequence[TrainingRecord]) -> str:
    """In what the runs differ so that their metrics must not be set against each other; nothing if in nothing."""
    what = {
        "the task": {record.task for record in records},
        "the data": {record.data for record in records},
        "the split": {record.split for record in records},
    }
    *others, last = [name for name, found in what.items() if len(found) > 1] or [""]
    return f"{', '.join(others)} and {last}" if others else last


def _sections(runs: Summary) -> list[Section]:
    """All charts for which the runs have the numbers."""
    groups = [
        ("training", "While training", [*learning_charts(runs), *training_charts(runs)]),
        ("trust", "Confidence", [reliability_chart(runs)]),
    ]
    several = len(runs.arms) > 1
    sections = [
        Section(key, title, [chart if several else replace(chart, legend=[]) for chart in charts if chart])
        for key, title, charts in groups
    ]
    return [section for section in sections if section.charts]
