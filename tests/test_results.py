"""The evidence in the repository: records that agree with each other, and a page that says what they say."""

from __future__ import annotations

from types import ModuleType

import pytest
import yaml

from rdrop.toolkit.compare import read_summary
from rdrop.toolkit.recipe_file import load_recipe
from rdrop.toolkit.summary import Confusion
from rdrop.toolkit.sweep import Sweep
from scripts_of_the_docs import ROOT, script

SETS = sorted(path.parents[1].name for path in (ROOT / "evidence").glob("*/answer/summary.json"))
TUNED = [name for name in SETS if (ROOT / "evidence" / name / "sweep").is_dir()]


@pytest.fixture(scope="module")
def results() -> ModuleType:
    return script("results")


def test_the_page_is_what_the_records_say(results: ModuleType) -> None:
    written = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    assert written == results.page(), "run python scripts/results.py"
    assert all(f"#{name}" in written for name in SETS)


@pytest.mark.parametrize("name", SETS)
def test_a_set_has_all_arms_and_seeds_and_its_recipe(name: str) -> None:
    summary = read_summary(ROOT / "evidence" / name / "answer")
    assert [arm.name for arm in summary.arms] == ["plain", "twice", "rdrop", "longer"]
    seeds = load_recipe("digits").compare.seeds if name == "digits" else summary.recipe["compare"]["seeds"]  # type: ignore[index]
    assert len(seeds) >= 3
    assert {(run.arm, run.seed) for run in summary.runs} == {(arm.name, seed) for arm in summary.arms for seed in seeds}


@pytest.mark.parametrize("name", TUNED)
def test_the_settings_are_those_that_the_sweep_chose_with_other_seeds(name: str) -> None:
    folder = ROOT / "evidence" / name
    sweep = Sweep.model_validate_json((folder / "sweep" / "sweep.json").read_text(encoding="utf-8"))
    summary = read_summary(folder / "answer")
    chosen = load_recipe(str(folder / "sweep" / "chosen.yaml"))
    # Fields that recipes have got since have their defaults.
    assert type(chosen).model_validate(summary.recipe) == chosen
    assert chosen.compare.split == "test"
    assert chosen.compare.chosen == sweep.chosen
    assert not set(sweep.grid.seeds) & set(chosen.compare.seeds)
    tries = [each.arm for each in sweep.tries]
    assert {tries.count(arm) for arm in tries} == {sweep.grid.tries}
    start = load_recipe(str(folder / "recipe.yaml"))
    assert type(start).model_validate(sweep.recipe) == start
    untouched = {"compare"}
    assert start.model_dump(exclude=untouched) == chosen.model_dump(exclude=untouched)


@pytest.mark.parametrize("name", sorted({*SETS} - {"digits"}))
def test_nothing_of_the_data_is_in_the_records(name: str) -> None:
    summary = read_summary(ROOT / "evidence" / name / "answer")
    assert all(isinstance(item, Confusion) for run in summary.runs for item in run.exhibits)


@pytest.mark.parametrize("name", SETS)
def test_no_path_of_a_machine_is_in_the_records(name: str) -> None:
    summary = read_summary(ROOT / "evidence" / name / "answer")
    told = yaml.safe_dump(summary.recipe) + summary.environment.command
    assert " /" not in told


STUDY = sorted(path.parents[1].name for path in (ROOT / "evidence" / "estimators").glob("*/answer/summary.json"))


@pytest.fixture(scope="module")
def study() -> ModuleType:
    return script("study")


def test_the_page_on_cheaper_forms_is_what_its_records_say(study: ModuleType) -> None:
    written = (ROOT / "docs" / "cheaper.md").read_text(encoding="utf-8")
    assert written == study.page(), "run python scripts/study.py"
    assert all(f"#{name}" in written for name in STUDY)


@pytest.mark.parametrize("name", STUDY)
def test_a_study_has_the_arms_and_seeds_of_its_recipe_and_nothing_of_the_data(name: str) -> None:
    folder = ROOT / "evidence" / "estimators" / name
    summary, recipe = read_summary(folder / "answer"), load_recipe(str(folder / "recipe.yaml"))
    assert {(run.arm, run.seed) for run in summary.runs} == {
        (arm, seed) for arm in recipe.compare.arms for seed in recipe.compare.seeds
    }
    assert len(recipe.compare.seeds) >= 5
    assert type(recipe).model_validate(summary.recipe) == recipe
    assert not any(run.exhibits for run in summary.runs)
    assert " /" not in yaml.safe_dump(summary.recipe) + summary.environment.command
