"""From the records of all runs to one summary."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median
from typing import TYPE_CHECKING

from rdrop.toolkit.arm_names import ArmName
from rdrop.toolkit.arms import BASELINE, description, notes_on_form, objective, recipe_of
from rdrop.toolkit.headline import Finding, headline, with_intervals
from rdrop.toolkit.recipe import Recipe, cautions
from rdrop.toolkit.runs import RunRecord
from rdrop.toolkit.statistics import interval, paired_difference
from rdrop.toolkit.summary import Arm, Environment, Interval, Metric, Summary, Timing

if TYPE_CHECKING:
    from rdrop.toolkit.train import Survey

HEADLINES = 2  # so many metrics, the first ones, are in the answer

READ_WITH_CARE = (
    "Intervals are Student's t over seeds and, for differences, paired by seed; p-values are not adjusted "
    "for the number of metrics and arms.",
    "Learning curves select nothing: each run is judged by its last step.",
    "Computation is counted (matrix products and convolutions, forward and backward), the time of a step is measured.",
)


def summarize(
    recipe: Recipe, found: Survey, records: Sequence[RunRecord], jobs: int, environment: Environment
) -> Summary:
    """Everything that the table and the page show.

    Args:
        recipe: The complete recipe.
        found: What reading the data told.
        records: All runs, also those that failed.
        jobs: Runs that shared the machine.
        environment: Where they ran.

    Returns:
        The summary, with the arms in the recipe's order after `plain`.
    """
    names = sorted(recipe.compare.arms, key=lambda arm: arm != BASELINE)
    by_arm = {arm: _Results([record for record in records if record.run.arm == arm]) for arm in names}
    main = found.metrics[:HEADLINES]
    return Summary(
        title=recipe.title,
        task=recipe.FAMILY,
        data=records[0].data,
        recipe=recipe.model_dump(mode="json"),
        metrics=list(found.metrics),
        arms=[_arm(arm, recipe, found, by_arm[arm], by_arm[BASELINE]) for arm in names],
        runs=[record.run for arm in names for record in by_arm[arm].records],
        headline=_headline(by_arm, main),
        notes=[*_notes(recipe, found, records), *_equal_compute(by_arm, main)],
        timing=_timing(by_arm, jobs),
        environment=environment,
    )


class _Results:
    """The runs of one arm."""

    def __init__(self, records: Sequence[RunRecord]) -> None:
        self.records = records
        self.finished = {r.run.seed: r for r in records if r.run.status == "finished"}

    def metric(self, name: str) -> dict[int, float]:
        return {seed: record.run.metrics[name] for seed, record in self.finished.items()}


def _arm(name: ArmName, recipe: Recipe, found: Survey, results: _Results, baseline: _Results) -> Arm:
    goal = objective(name, recipe_of(name, recipe))
    steps = max(record.run.optimizer_steps for record in results.records)
    step_compute = results.records[0].step_compute
    differences = {
        metric.name: paired_difference(results.metric(metric.name), baseline.metric(metric.name))
        for metric in found.metrics
        if name != BASELINE
    }
    return Arm(
        name=name,
        description=description(name, recipe),
        passes=goal.passes,
        alpha=goal.alpha,
        strategy=results.records[0].strategy,
        optimizer_steps=steps,
        step_compute=step_compute,
        total_compute=step_compute * steps / found.nominal_steps,
        seeds=list(results.finished),
        failed={r.run.seed: r.run.error or "unknown" for r in results.records if r.run.status == "failed"},
        metrics={
            metric.name: interval(list(results.metric(metric.name).values()))
            for metric in found.metrics
            if results.finished
        },
        differences={key: difference for key, difference in differences.items() if difference is not None},
    )


def _findings(by_arm: dict[ArmName, _Results], opponent: ArmName, metrics: Sequence[Metric]) -> list[Finding]:
    """R-Drop minus an opponent, paired by seed, in the metrics of the headline."""
    if opponent not in by_arm or "rdrop" not in by_arm:
        return []
    pairs = [
        (metric, paired_difference(by_arm["rdrop"].metric(metric.name), by_arm[opponent].metric(metric.name)))
        for metric in metrics
    ]
    return [(metric, difference) for metric, difference in pairs if difference is not None]


def _headline(by_arm: dict[ArmName, _Results], metrics: Sequence[Metric]) -> str:
    if "rdrop" not in by_arm:
        return "The arm `rdrop` was not run, so there is no answer about R-Drop."
    step_compute = by_arm["rdrop"].records[0].step_compute
    return headline(_findings(by_arm, BASELINE, metrics), _findings(by_arm, "longer", metrics), step_compute)


def _notes(recipe: Recipe, found: Survey, records: Sequence[RunRecord]) -> list[str]:
    """What a careful reader must know."""
    judged = ["The runs are judged on the validation split."] if recipe.compare.split == "validation" else []
    split = "what is drawn from the data, " if recipe.data.split_seed is None else ""
    return [
        *(f"{r.run.arm}, seed {r.run.seed} failed: {r.run.error}" for r in records if r.run.status == "failed"),
        *cautions(recipe),
        *judged,
        *dict.fromkeys(note for r in records for note in notes_on_form(r.run.arm, r.form, recipe)),
        *found.notes,
        *dict.fromkeys(warning for record in records for warning in record.warnings),
        f"A seed decides {split}the initial weights, the order of the data and the dropout masks; all but "
        "the masks are the same in every arm.",
        _tuning(recipe),
        *READ_WITH_CARE,
    ]


def _tuning(recipe: Recipe) -> str:
    """Where the settings came from, as far as the recipe tells."""
    if not recipe.compare.chosen:
        return "Nothing was tuned here: alpha and every other value are those of the recipe."
    settings = {arm: chosen.model_dump(exclude_none=True) for arm, chosen in recipe.compare.chosen.items()}
    chosen = [
        f"{arm} with {' and '.join(f'{key} {value:g}' for key, value in values.items())}"
        for arm, values in settings.items()
    ]
    return f"Arms with settings of their own: {'; '.join(chosen)}. They were chosen before, outside this comparison."


def _equal_compute(by_arm: dict[ArmName, _Results], metrics: Sequence[Metric]) -> list[str]:
    """R-Drop against plain training of the same total computation, with intervals."""
    findings = _findings(by_arm, "longer", metrics)
    return [f"R-Drop minus `longer`, paired by seed: {with_intervals(findings)}."] if findings else []


def _timing(by_arm: dict[ArmName, _Results], jobs: int) -> Timing:
    step_ms = {
        arm: {seed: record.step_ms for seed, record in results.finished.items() if record.step_ms is not None}
        for arm, results in by_arm.items()
    }
    ratios: dict[str, Interval] = {}
    for arm, times in step_ms.items():
        per_seed = [time / step_ms[BASELINE][seed] for seed, time in times.items() if seed in step_ms[BASELINE]]
        if per_seed:
            ratios[arm] = interval(per_seed)
    return Timing(
        step_ms={arm: median(times.values()) for arm, times in step_ms.items() if times},
        step_ratio=ratios,
        run_seconds={
            arm: {record.run.seed: record.seconds for record in results.records} for arm, results in by_arm.items()
        },
        jobs=jobs,
    )
