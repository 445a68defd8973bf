from __future__ import annotations

from typing import Any

import pytest

from rdrop.toolkit.headline import NO_ANSWER
from rdrop.toolkit.metrics import CLASSIFICATION_METRICS
from rdrop.toolkit.runs import RunRecord
from rdrop.toolkit.summarize import summarize
from rdrop.toolkit.summary import Environment, Run, Summary
from rdrop.toolkit.tasks.digits import DigitsRecipe
from rdrop.toolkit.train import Survey

ENVIRONMENT = Environment(created="", machine="", versions={}, command="")
COMPUTE = {"plain": 1.0, "rdrop": 1.5, "longer": 1.0}


def record(arm: str, seed: int, value: float, **fields: Any) -> RunRecord:
    """A run whose metrics are all `value`; it failed if an `error` is given."""
    error = fields.pop("error", None)
    run = Run(
        arm=arm,
        seed=seed,
        status="failed" if error else "finished",
        error=error,
        optimizer_steps=900 if arm == "longer" else 600,
        metrics={} if error else {metric.name: value for metric in CLASSIFICATION_METRICS},
    )
    defaults: dict[str, Any] = {"step_ms": 10.0 * COMPUTE[arm] + seed, "warnings": []}
    options = defaults | fields
    return RunRecord(run=run, data="toys", strategy="single", step_compute=COMPUTE[arm], seconds=2.0, **options)


def summary(records: list[RunRecord], **sections: Any) -> Summary:
    compare = {"arms": ["longer", "rdrop", "plain"], "seeds": [0, 1]}
    recipe = DigitsRecipe.model_validate({"compare": compare} | sections)
    found = Survey(nominal_steps=600, metrics=CLASSIFICATION_METRICS, notes=("Two rows were skipped.",), plans={})
    return summarize(recipe, found, records, jobs=2, environment=ENVIRONMENT)


def complete() -> list[RunRecord]:
    values = {"plain": (0.5, 0.6), "rdrop": (0.8, 0.7), "longer": (0.9, 0.9)}
    return [record(arm, seed, values[arm][seed]) for seed in (0, 1) for arm in values]


def test_arms_are_averaged_and_paired_with_plain() -> None:
    result = summary(complete())
    assert [arm.name for arm in result.arms] == ["plain", "longer", "rdrop"]
    plain, longer, rdrop = result.arms
    assert plain.metrics["accuracy"].mean == pytest.approx(0.55)
    assert plain.differences == {}
    assert rdrop.differences["nll"].per_seed == pytest.approx({0: 0.3, 1: 0.1})
    assert rdrop.differences["nll"].mean == pytest.approx(0.2)
    assert (rdrop.step_compute, rdrop.total_compute) == (1.5, 1.5)
    assert (longer.step_compute, longer.total_compute, longer.optimizer_steps) == (1.0, 1.5, 900)
    assert [(run.arm, run.seed) for run in result.runs][:2] == [("plain", 0), ("plain", 1)]
    assert (result.data, result.metrics) == ("toys", list(CLASSIFICATION_METRICS))
    assert result.headline.startswith("Over 2 seeds, no difference could be shown in Accuracy (+20.00 points)")
    assert result.notes[-1].startswith("R-Drop minus `longer`, paired by seed: Accuracy −15.00 points (95%")
    assert "With equal computation, no difference" in result.headline
    assert Summary.model_validate_json(result.model_dump_json()) == result


def test_times_are_ratios_to_plain_by_seed() -> None:
    timing = summary(complete()).timing
    assert timing.step_ms == {"plain": 10.5, "longer": 10.5, "rdrop": 15.5}
    assert timing.step_ratio["rdrop"].mean == pytest.approx((15 / 10 + 16 / 11) / 2)
    assert timing.run_seconds["rdrop"] == {0: 2.0, 1: 2.0}
    assert summary([record("plain", 0, 0.5, step_ms=None), *complete()[1:]]).timing.step_ms["plain"] == 11.0


def test_failed_runs_are_told_and_left_out_of_the_means() -> None:
    records = complete()
    records[1] = record("rdrop", 0, 0.0, error="FloatingPointError: nan")
    result = summary(records)
    rdrop = result.arms[2]
    assert (rdrop.seeds, rdrop.failed) == ([1], {0: "FloatingPointError: nan"})
    assert rdrop.metrics["accuracy"].model_dump() == {"mean": 0.7, "low": None, "high": None}
    assert rdrop.differences["accuracy"].p_value is None
    assert result.notes[0] == "rdrop, seed 0 failed: FloatingPointError: nan"
    assert len(result.runs) == 6
    assert "With a single seed chance cannot be told" in result.headline


def test_an_arm_without_a_finished_run_has_no_numbers() -> None:
    records = [record("rdrop", r.run.seed, 0.0, error="out of luck") if r.run.arm == "rdrop" else r for r in complete()]
    result = summary(records)
    assert (result.arms[2].metrics, result.arms[2].differences, result.arms[2].seeds) == ({}, {}, [])
    assert result.headline == NO_ANSWER


def test_without_rdrop_there_is_no_answer() -> None:
    records = [r for r in complete() if r.run.arm != "rdrop"]
    result = summary(records, compare={"arms": ["plain", "longer"], "seeds": [0, 1]})
    assert result.headline == "The arm `rdrop` was not run, so there is no answer about R-Drop."


def test_notes_say_what_a_careful_reader_must_know() -> None:
    warned = [record("plain", 0, 0.5, warnings=["nothing is random"]), *complete()[1:-1]]
    notes = "\n".join(summary([*warned, record("longer", 1, 0.9, warnings=["nothing is random"])]).notes)
    assert notes.count("nothing is random") == 1
    told = ("what is drawn from the data", "Two rows were skipped", "not adjusted", "Nothing was tuned")
    for fact in (*told, "select nothing"):
        assert fact in notes
    fixed = summary(complete(), data={"split_seed": 1})
    assert "what is drawn from the data" not in "\n".join(fixed.notes)
    without_dropout = summary(complete(), model={"dropout": 0.0})
    assert "model.dropout is 0" in without_dropout.notes[0]
