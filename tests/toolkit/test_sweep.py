from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from rdrop.errors import UserError
from rdrop.toolkit import sweep as module
from rdrop.toolkit import worker
from rdrop.toolkit.arm_names import ArmName
from rdrop.toolkit.arms import recipe_of
from rdrop.toolkit.pool import Progress
from rdrop.toolkit.recipe import Chosen, Recipe
from rdrop.toolkit.recipe_file import load_recipe
from rdrop.toolkit.runs import RunRecord
from rdrop.toolkit.step_plan import StepPlan
from rdrop.toolkit.summary import Listing, Metric, Run
from rdrop.toolkit.sweep import Grid, Sweep, Try, best, settings, sweep
from rdrop.toolkit.tasks.digits import DigitsRecipe
from rdrop.toolkit.tasks.language_modeling import LanguageRecipe
from rdrop.toolkit.train import Survey

ACCURACY = Metric(name="accuracy", label="Accuracy", higher_is_better=True, percent=True, explanation="")
PERPLEXITY = Metric(name="perplexity", label="Perplexity", higher_is_better=False, percent=False, explanation="")
GRID = Grid(alphas=[1.0, 2.0], dropouts=[0.1, 0.4], seeds=[5, 6])
RECIPE = LanguageRecipe.model_validate(
    {"data": {"test": "test.txt"}, "compare": {"arms": ["plain", "longer", "rdrop"], "seeds": [0, 1]}}
)


def grid(**changes: list[float]) -> Grid:
    return Grid.model_validate(GRID.model_dump() | changes)


@pytest.mark.parametrize(
    ("alphas", "dropouts", "spread"),
    [
        ([1.0, 2.0], [0.1, 0.4], [0.1, 0.2, 0.3, 0.4]),
        ([0.5, 1.0, 2.0], [0.3, 0.1], [0.1, 0.14, 0.18, 0.22, 0.26, 0.3]),
        ([1.0], [0.0, 0.3, 0.1], [0.0, 0.15, 0.3]),
        ([3.0], [0.25], [0.25]),
    ],
)
def test_every_arm_has_as_many_tries(alphas: list[float], dropouts: list[float], spread: list[float]) -> None:
    tried = settings(["plain", "twice", "rdrop", "longer"], grid(alphas=alphas, dropouts=dropouts))
    by_arm = {
        arm: [(each.alpha, each.dropout) for each in tried if each.arm == arm] for arm in ("plain", "rdrop", "longer")
    }
    assert by_arm["plain"] == by_arm["longer"] == [(None, dropout) for dropout in spread]
    assert sorted(by_arm["rdrop"]) == sorted((alpha, dropout) for alpha in alphas for dropout in dropouts)
    assert len(by_arm["plain"]) == len(by_arm["rdrop"])


@pytest.mark.parametrize(
    ("dropouts", "message"),
    [
        (
            [0.1],
            "2 alphas with 1 dropout rates are 2 tries for rdrop, but from 0.1 to 0.1 there are only 1 dropout rates",
        ),
        ([0.1, 0.101], "but from 0.1 to 0.101 there are only 2 dropout rates"),
        ([0.1, 0.1], "0.1 is listed twice"),
        ([0.1, 0.9999], "less than or equal to 0.999"),
        ([], "at least 1 item"),
    ],
)
def test_dropout_rates_that_do_not_give_every_arm_as_many_tries_are_refused(
    dropouts: list[float], message: str
) -> None:
    with pytest.raises(ValidationError, match=message):
        grid(dropouts=dropouts)


def made(dropout: float, value: float | None, alpha: float | None = None) -> Try:
    means = {} if value is None else {"accuracy": value, "perplexity": value}
    return Try(arm="rdrop", alpha=alpha, dropout=dropout, metrics={}, failed={}, means=means)


def test_the_best_follows_the_direction_of_the_metric() -> None:
    tries = [made(0.1, 2.0), made(0.2, 3.0), made(0.3, 1.0), made(0.4, None)]
    assert best(tries, ACCURACY) is tries[1]
    assert best(tries, PERPLEXITY) is tries[2]
    assert best(tries[3:], ACCURACY) is None


def test_of_equal_tries_the_lower_dropout_wins_and_then_the_lower_alpha() -> None:
    tries = [made(0.3, 0.9, 1.0), made(0.2, 0.9, 4.0), made(0.2, 0.9, 3.0), made(0.1, 0.8, 1.0)]
    assert best(tries, ACCURACY) is tries[2]


class Watched:
    """Progress that is written down."""

    def __init__(self, stop_after: int | None = None) -> None:
        self.stop_after = stop_after
        self.started: list[tuple[int, int, int]] = []
        self.told: list[tuple[str, int]] = []
        self.closed = False

    def read(self) -> None:
        pass

    def planned(self, plans: Mapping[ArmName, StepPlan]) -> None:
        pass

    def start(self, total_runs: int, total_steps: int, finished_runs: int) -> None:
        self.started.append((total_runs, total_steps, finished_runs))

    def advance(self, steps: int) -> None:
        pass

    def finished(self, run: Run) -> None:
        self.told.append((run.arm, run.seed))
        if len(self.told) == self.stop_after:
            raise KeyboardInterrupt

    def close(self) -> None:
        self.closed = True


class InOrder:
    """A pool that does everything at once, in this process."""

    def submit(self, work: Callable[..., Any], *arguments: Any) -> Future[Any]:
        done: Future[Any] = Future()
        done.set_result(work(*arguments))
        return done


class Runs:
    """In place of training: the perplexity is known, and what was asked for is noted."""

    def __init__(self) -> None:
        self.asked: list[tuple[Recipe, ArmName, int]] = []
        self.events: list[Path] = []
        self.surveyed: list[Recipe] = []
        self.fails: Callable[[Recipe, ArmName, int], bool] = lambda recipe, arm, seed: False

    def survey(self, recipe: Recipe) -> Survey:
        self.surveyed.append(recipe)
        return Survey(nominal_steps=10, metrics=(PERPLEXITY,), notes=("Two rows were skipped.",), plans={})

    def run(self, recipe: Recipe, arm: ArmName, seed: int, nominal: int, events: Path) -> RunRecord:
        self.asked.append((recipe, arm, seed))
        self.events.append(events)
        mine = recipe_of(arm, recipe)
        assert mine.model.dropout is not None
        alpha = mine.rdrop.alpha if arm == "rdrop" else 0.0
        # Best with dropout 0.3 or, for rdrop, 0.4 and alpha 1; the seeds differ by more than the settings.
        value = abs(mine.model.dropout - (0.4 if arm == "rdrop" else 0.3)) + alpha / 100 + seed
        failed = self.fails(recipe, arm, seed)
        run = Run(
            arm=arm,
            seed=seed,
            status="failed" if failed else "finished",
            error="the loss is nan" if failed else None,
            metrics={} if failed else {"perplexity": value},
            exhibits=[Listing(title="", reading="", columns=[], rows=[])],
        )
        return RunRecord(
            run=run, data="Toys.", warnings=[], strategy="single", step_compute=1.0, step_ms=None, seconds=1.0
        )


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> Runs:
    """Runs without training, in this process."""
    fake = Runs()

    @contextmanager
    def pool(jobs: int, progress: Progress) -> Iterator[InOrder]:
        yield InOrder()

    monkeypatch.setattr(module, "worker_pool", pool)
    monkeypatch.setattr(worker, "survey", fake.survey)
    monkeypatch.setattr(worker, "run", fake.run)
    return fake


def swept(
    out: Path, recipe: Recipe = RECIPE, wanted: Grid = GRID, *, resume: bool = False, progress: Watched | None = None
) -> Sweep:
    return sweep(recipe, wanted, out, jobs=2, resume=resume, command="rdrop sweep", progress=progress or Watched())


def test_runs_are_cheap_and_judged_on_the_validation_split_with_the_seeds_of_the_sweep(
    runs: Runs, tmp_path: Path
) -> None:
    swept(tmp_path / "out")
    assert [(arm, seed) for _, arm, seed in runs.asked[:4]] == [("plain", 5), ("longer", 5), ("rdrop", 5), ("plain", 5)]
    assert [seed for *_, seed in runs.asked] == [5] * 12 + [6] * 12
    for recipe in [*runs.surveyed, *(recipe for recipe, *_ in runs.asked)]:
        compare = recipe.compare
        assert (compare.split, compare.samples, compare.seeds) == ("validation", 2, [5, 6])
        assert recipe.model_copy(update={"compare": RECIPE.compare}) == RECIPE
    for arm in ("plain", "longer"):
        rates = [recipe_of(arm, recipe).model.dropout for recipe, made, seed in runs.asked if (made, seed) == (arm, 5)]
        assert rates == [0.1, 0.2, 0.3, 0.4]
    pairs = [recipe_of("rdrop", recipe) for recipe, arm, seed in runs.asked if (arm, seed) == ("rdrop", 5)]
    assert [(each.rdrop.alpha, each.model.dropout) for each in pairs] == [(1, 0.1), (2, 0.1), (1, 0.4), (2, 0.4)]


def test_longer_takes_the_compute_of_rdrop_with_dropout_whatever_its_own_rate(runs: Runs, tmp_path: Path) -> None:
    recipe = RECIPE.model_copy(update={"model": RECIPE.model.model_copy(update={"dropout": 0.0})})
    swept(tmp_path / "out", recipe, grid(dropouts=[0.0, 0.4]))
    rivals = [recipe_of("rdrop", recipe).model.dropout for recipe, arm, _ in runs.asked if arm == "longer"]
    assert rivals == [0.4] * 8


def test_the_best_of_each_arm_is_chosen_by_the_mean_over_the_seeds(runs: Runs, tmp_path: Path) -> None:
    progress = Watched()
    found = swept(tmp_path / "out", progress=progress)
    assert found.chosen == {
        "plain": Chosen(dropout=0.3),
        "longer": Chosen(dropout=0.3),
        "rdrop": Chosen(alpha=1.0, dropout=0.4),
    }
    assert [each.title for each in found.tries[2:9:3]] == [
        "plain, dropout 0.3",
        "longer, dropout 0.2",
        "rdrop, alpha 1, dropout 0.1",
    ]
    assert found.tries[1].metrics == {5: {"perplexity": pytest.approx(5.1)}, 6: {"perplexity": pytest.approx(6.1)}}
    assert found.tries[1].means == {"perplexity": pytest.approx(5.6)}
    assert (found.grid, found.data, found.recipe) == (GRID, "Toys.", RECIPE.model_dump(mode="json"))
    assert found.environment.command == "rdrop sweep"
    assert found.notes == ["Two rows were skipped."]
    assert progress.started == [(24, 240, 0)]
    assert ("rdrop, alpha 1, dropout 0.1", 5) in progress.told
    assert progress.closed
    text = (tmp_path / "out" / "sweep.json").read_text(encoding="utf-8")
    assert Sweep.model_validate_json(text) == found


def test_the_chosen_recipe_is_the_one_that_was_given_with_the_settings_in_it(runs: Runs, tmp_path: Path) -> None:
    given = load_recipe("digits").compare.model_copy(update={"split": "validation", "seeds": [0, 1]})
    found = swept(tmp_path / "out", RECIPE.model_copy(update={"compare": given}), grid(alphas=[1.0]))
    recipe = load_recipe(tmp_path / "out" / "chosen.yaml")
    assert recipe.compare == given.model_copy(update={"split": "test", "chosen": found.chosen})
    assert recipe.model_copy(update={"compare": RECIPE.compare}) == RECIPE


def test_a_try_with_a_failed_run_loses_and_is_listed(runs: Runs, tmp_path: Path) -> None:
    runs.fails = lambda recipe, arm, seed: seed == 6 and recipe_of(arm, recipe).model.dropout == 0.3
    found = swept(tmp_path / "out")
    assert found.chosen["plain"] == Chosen(dropout=0.2)
    plain = found.tries[2]
    assert (plain.title, plain.failed, plain.means) == ("plain, dropout 0.3", {6: "the loss is nan"}, {})
    assert list(plain.metrics) == [5]


def test_without_a_try_that_finished_there_is_no_recipe_to_go_on_with(runs: Runs, tmp_path: Path) -> None:
    runs.fails = lambda recipe, arm, seed: arm == "rdrop"
    found = swept(tmp_path / "out")
    assert (list(found.chosen), found.without_choice) == (["plain", "longer"], ["rdrop"])
    assert (tmp_path / "out" / "sweep.json").exists()
    assert not (tmp_path / "out" / "chosen.yaml").exists()


def test_stopped_and_resumed_comes_out_the_same(runs: Runs, tmp_path: Path) -> None:
    undisturbed = swept(tmp_path / "undisturbed")
    with pytest.raises(KeyboardInterrupt):
        swept(tmp_path / "out", progress=Watched(stop_after=7))
    assert len(list((tmp_path / "out").glob("tries/*/runs/*.json"))) == 7
    leftover = tmp_path / "out" / "tries" / "plain-dropout0.3" / "runs" / ".plain-seed5.json.9.tmp"
    leftover.write_text("{", encoding="utf-8")
    with pytest.raises(UserError, match="already holds a sweep"):
        swept(tmp_path / "out")
    runs.asked, progress = [], Watched()
    resumed = swept(tmp_path / "out", resume=True, progress=progress)
    assert progress.started == [(24, 170, 7)]
    assert len(runs.asked) == len(progress.told) == 17
    assert resumed.model_dump(exclude={"environment"}) == undisturbed.model_dump(exclude={"environment"})
    assert not leftover.exists()


def test_each_try_is_kept_by_what_it_is_and_without_its_pictures(runs: Runs, tmp_path: Path) -> None:
    swept(tmp_path / "out")
    paths = sorted((tmp_path / "out" / "tries").glob("*/runs/*.json"))
    assert len(paths) == 24
    assert [path.relative_to(tmp_path / "out" / "tries").as_posix() for path in (paths[0], paths[-1])] == [
        "longer-dropout0.1/runs/longer-seed5.json",
        "rdrop-alpha2.0-dropout0.4/runs/rdrop-seed6.json",
    ]
    assert all(json.loads(path.read_text(encoding="utf-8"))["run"]["exhibits"] == [] for path in paths)
    assert {events.name for events in runs.events} == {"tensorboard"}
    assert {events.parent for events in runs.events} == {path.parents[1] for path in paths}


def test_another_grid_or_recipe_is_refused_with_what_differs(runs: Runs, tmp_path: Path) -> None:
    swept(tmp_path / "out")
    with pytest.raises(UserError, match=r"another grid: alphas are 1, 2 there and 1, 3 here"):
        swept(tmp_path / "out", wanted=grid(alphas=[1.0, 3.0]), resume=True)
    with pytest.raises(UserError, match=r"another grid: seeds are 5, 6 there and 5 here"):
        swept(tmp_path / "out", wanted=grid(seeds=[5]), resume=True)
    other = RECIPE.model_copy(update={"title": "Other"})
    with pytest.raises(UserError, match=r"holds a sweep with another recipe: title is"):
        swept(tmp_path / "out", other, resume=True)


@pytest.mark.parametrize("text", ["", "{", '{"alphas": [1.0]}', "\xff"], ids=["empty", "half", "other", "binary"])
def test_a_damaged_grid_is_named(runs: Runs, tmp_path: Path, text: str) -> None:
    swept(tmp_path / "out")
    (tmp_path / "out" / "tries" / "grid.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(UserError, match=r"grid\.json cannot be read"):
        swept(tmp_path / "out", resume=True)


def test_a_recipe_without_a_validation_split_is_refused_before_anything_is_made(runs: Runs, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"\(digits\) has no validation split, .* data.validation"):
        swept(tmp_path / "out", DigitsRecipe())
    assert not (tmp_path / "out").exists()


def test_data_that_turn_out_to_be_bad_leave_a_free_folder(
    runs: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def survey(recipe: Recipe) -> Survey:
        raise UserError("train.txt:3: not UTF-8")

    good = worker.survey
    monkeypatch.setattr(worker, "survey", survey)
    with pytest.raises(UserError, match=r"train\.txt:3"):
        swept(tmp_path / "out")
    monkeypatch.setattr(worker, "survey", good)
    assert swept(tmp_path / "out", wanted=grid(alphas=[4.0])).grid.alphas == [4.0]


def test_what_flatters_the_comparison_that_follows_is_told(runs: Runs, tmp_path: Path) -> None:
    recipe = RECIPE.model_copy(update={"data": RECIPE.data.model_copy(update={"test": None})})
    notes = swept(tmp_path / "out", recipe, grid(seeds=[1, 7])).notes
    assert [note.partition(":")[0] for note in notes[:2]] == [
        "Seeds of compare.seeds chose the settings (1)",
        "The recipe has no test split",
    ]


def test_a_choice_at_the_end_of_what_was_tried_is_told(runs: Runs, tmp_path: Path) -> None:
    notes = swept(tmp_path / "out", wanted=grid(alphas=[1.0, 2.0, 3.0], dropouts=[0.3, 0.4])).notes
    assert notes[:3] == [
        f"{what} tried; there may be better ones beyond it."
        for what in (
            "plain: the best dropout, 0.3, is the lowest",
            "longer: the best dropout, 0.3, is the lowest",
            "rdrop: the best alpha, 1, is the lowest",
        )
    ]
