from __future__ import annotations

import shlex
from pathlib import Path
from random import Random

import pytest

import rdrop.toolkit.sweep
from rdrop.cli import main
from rdrop.errors import UserError
from rdrop.toolkit.arm_names import ArmName
from rdrop.toolkit.recipe import Chosen, Recipe
from rdrop.toolkit.recipe_file import load_recipe, recipe_text
from rdrop.toolkit.runs import RunRecord
from rdrop.toolkit.summary import Environment, Metric, Summary
from rdrop.toolkit.sweep import GRID_FILE, Grid, Sweep, Try

WORDS = ["mine.yaml", "--alphas", "0.5,1", "--dropouts", "0.1,.3"]
RECIPE = "task: language-modeling\ncompare: {seeds: [0, 1, 3], arms: [plain, rdrop]}\n"


def run(*words: str) -> int:
    """Exit code of the command in this process."""
    with pytest.raises(SystemExit) as caught:
        main(["sweep", *words])
    assert caught.value.code is None or isinstance(caught.value.code, int)
    return caught.value.code or 0


def found(recipe: Recipe, grid: Grid, *, failed: bool = False) -> Sweep:
    """A small sweep of two arms."""
    means = {"accuracy": 0.9123, "nll": 0.25}
    plain = Try(arm="plain", dropout=0.1, metrics={2: means, 4: means}, failed={}, means=means)
    rdrop = Try(arm="rdrop", alpha=0.5, dropout=0.3, metrics={}, failed={}, means=means | {"accuracy": 0.95})
    if failed:
        rdrop = rdrop.model_copy(update={"failed": {2: "the loss is [nan]"}, "means": {}})
    chosen: dict[ArmName, Chosen] = {"plain": Chosen(dropout=0.1)}
    if not failed:
        chosen["rdrop"] = Chosen(alpha=0.5, dropout=0.3)
    return Sweep(
        title="Small",
        task="language-modeling",
        data="Nothing.",
        recipe=recipe.model_dump(mode="json"),
        grid=grid,
        metrics=[
            Metric(name="accuracy", label="Accuracy", higher_is_better=True, percent=True, explanation="Right."),
            Metric(name="nll", label="NLL", higher_is_better=False, percent=False, explanation="Surprise."),
        ],
        tries=[plain, rdrop],
        chosen=chosen,
        notes=["A note."],
        environment=Environment(created="", machine="", versions={}, command=""),
    )


class Calls(list[dict[str, object]]):
    """What the toolkit was asked for."""

    failed = False
    error: BaseException | None = None


@pytest.fixture
def calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Calls:
    """A working folder with a recipe, and a toolkit that notes what it is asked for and answers at once."""
    monkeypatch.chdir(tmp_path)
    Path("mine.yaml").write_text(RECIPE)
    noted = Calls()

    def sweep(recipe: Recipe, grid: Grid, out: Path, **rest: object) -> Sweep:
        noted.append({"recipe": recipe, "grid": grid, "out": out, **rest})
        (out / GRID_FILE).parent.mkdir(parents=True, exist_ok=True)
        (out / "recipe.yaml").write_text(recipe_text(recipe))
        (out / GRID_FILE).write_text(grid.model_dump_json())
        if noted.error is not None:
            raise noted.error
        return found(recipe, grid, failed=noted.failed)

    monkeypatch.setattr(rdrop.toolkit.sweep, "sweep", sweep)
    return noted


def test_recipe_and_grid_reach_the_toolkit(calls: Calls) -> None:
    assert run(*WORDS, "epochs=2", "--arms", "plain,longer", "--seeds", "2", "--jobs", "7", "--out", "here") == 0
    (call,) = calls
    recipe = call["recipe"]
    assert isinstance(recipe, Recipe)
    assert (recipe.training.epochs, recipe.compare.arms, recipe.compare.seeds) == (2, ["plain", "longer"], [0, 1, 3])
    assert call["grid"] == Grid(alphas=[0.5, 1.0], dropouts=[0.1, 0.3], seeds=[2, 4])
    assert (call["out"], call["jobs"], call["resume"]) == (Path("here"), 7, False)


@pytest.mark.parametrize(("typed", "seeds"), [(None, [2]), ("3", [2, 4, 5]), ("0,9", [0, 9]), ("8,", [8])])
def test_seeds_are_those_that_the_comparison_does_not_use_or_a_list(
    calls: Calls, typed: str | None, seeds: list[int]
) -> None:
    assert run(*WORDS, *(["--seeds", typed] if typed else [])) == 0
    grid = calls[0]["grid"]
    assert isinstance(grid, Grid)
    assert grid.seeds == seeds


def test_the_number_of_runs_is_told_before_they_are_made(calls: Calls, capsys: pytest.CaptureFixture[str]) -> None:
    calls.error = UserError("no such file")
    assert run(*WORDS, "--seeds", "2") == 2
    assert capsys.readouterr().err.splitlines() == [
        "16 runs, judged on the validation split: arms plain, rdrop; tries of each arm 4; seeds 2, 4",
        "error: no such file",
    ]


def test_the_recorded_command_repeats_the_sweep(calls: Calls) -> None:
    assert run(*WORDS, "title=Two words", "--arms", "plain,longer") == 0
    words = shlex.split(str(calls[0]["command"]))
    assert words[:2] == ["rdrop", "sweep"]
    assert run(*words[2:]) == 0
    assert (calls[0]["recipe"], calls[0]["grid"]) == (calls[1]["recipe"], calls[1]["grid"])


def test_the_table_and_what_comes_next_go_to_standard_output(calls: Calls, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*WORDS, "--seeds", "2", "--out", "my runs") == 0
    shown = capsys.readouterr().out
    rows = [" ".join(line.replace("│", " ").split()) for line in shown.splitlines()]
    for line in (
        "Small: validation split, mean of 2 seeds; Accuracy chooses, higher is better",
        "plain \N{EN DASH} 0.1 91.23 0.2500 chosen",
        "rdrop 0.5 0.3 95.00 0.2500 chosen",
        "Note: A note.",
        "sweep my runs/sweep.json",
        "chosen my runs/chosen.yaml",
        "Next: rdrop compare 'my runs/chosen.yaml'",
    ):
        assert line in rows, line


def test_an_arm_without_a_choice_changes_the_exit_code(calls: Calls, capsys: pytest.CaptureFixture[str]) -> None:
    calls.failed = True
    assert run(*WORDS) == 1
    shown = capsys.readouterr()
    assert "rdrop, alpha 0.5, dropout 0.3, seed 2: failed: the loss is [nan]" in shown.out
    assert "failed │" in shown.out
    assert "Next" not in shown.out
    assert "error: every try of rdrop failed, so there is no chosen.yaml" in shown.err


def test_resume_takes_what_is_not_given_from_the_folder(calls: Calls) -> None:
    assert [run(*WORDS, "--seeds", "7,8"), run(*WORDS, "alpha=3")] == [0, 0]
    assert run("mine.yaml", "alpha=3", "--resume") == 0
    assert run("--resume", "--out", "rdrop-runs/mine-sweep-1") == 0
    assert [str(call["out"])[-1] for call in calls] == ["1", "2", "2", "1"]
    assert [call["resume"] for call in calls] == [False, False, True, True]
    for first, resumed in ((1, 2), (0, 3)):
        assert calls[resumed]["recipe"] == calls[first]["recipe"]
        assert calls[resumed]["grid"] == calls[first]["grid"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--alphas", "1", "--dropouts", "0.1"], "no recipe is named; expected one with a validation split"),
        (["--resume"], "no recipe is named"),
        (["mine.yaml", "--resume"], "nothing to resume: rdrop-runs holds no folder mine-sweep-1"),
        (["mine.yaml", "--alphas", "1"], "--dropouts is missing; expected for example --alphas 0.5,1,2"),
        (["mine.yaml", "--dropouts", "0.1"], "--alphas is missing"),
        ([*WORDS, "--seeds", "0"], "got --seeds 0, expected a count from 1 to 1000"),
        ([*WORDS, "--seeds", "1,x"], "got --seeds 1,x, expected a count, or whole numbers from 0"),
        (
            ["mine.yaml", "--alphas", "1;2", "--dropouts", "0.1"],
            "got --alphas 1;2, expected numbers above 0, with commas",
        ),
        (["mine.yaml", "--alphas", "0,1", "--dropouts", "0,0.1"], "got --alphas 0,1, expected numbers above 0"),
        (["mine.yaml", "--alphas", "nan", "--dropouts", "0.1"], "got --alphas nan, expected numbers above 0"),
        (["mine.yaml", "--alphas", ",", "--dropouts", "0.1"], "got --alphas ,, expected numbers above 0"),
        (
            ["mine.yaml", "--alphas", "1", "--dropouts", "0.1,1"],
            "got --dropouts 0.1,1, expected numbers from 0 to 0.999",
        ),
        (["mine.yaml", "--alphas", "1,1", "--dropouts", "0.1,0.2"], "error: --alphas: 1.0 is listed twice"),
        (["mine.yaml", "--alphas", "1,2", "--dropouts", "0.1"], "error: 2 alphas with 1 dropout rates are 2 tries"),
        ([*WORDS, "--arms", "plain,rdorp"], "--arms plain,rdorp: compare.arms[1]: got the text 'rdorp'"),
    ],
)
def test_a_mistake_is_told_before_anything_is_made(
    calls: Calls, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    assert run(*words) == 2
    assert message in capsys.readouterr().err
    assert (calls, [path.name for path in Path().iterdir()]) == ([], ["mine.yaml"])


def test_ctrl_c_tells_how_to_go_on(calls: Calls, capsys: pytest.CaptureFixture[str]) -> None:
    calls.error = KeyboardInterrupt()
    assert run(*WORDS, "--out", "my runs") == 130
    again = "rdrop sweep mine.yaml --alphas 0.5,1.0 --dropouts 0.1,0.3 --seeds 2, --resume --out 'my runs'"
    assert f"stopped; {again} goes on from here" in capsys.readouterr().err


def write_text(path: Path, lines: int, seed: int) -> None:
    words = "the cat sat on a mat and then it ran to the house near the sea"
    path.write_text("".join(" ".join(Random(seed + i).choices(words.split(), k=8)) + "\n" for i in range(lines)))


def test_a_real_sweep_from_the_command_to_the_comparison(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for seed, name in enumerate(("train", "validation", "test")):
        write_text(Path(f"{name}.txt"), 60 if name == "train" else 12, 1000 * seed)
    Path("mine.yaml").write_text("""
task: language-modeling
data: {train: train.txt, validation: validation.txt, test: test.txt, vocabulary: word, block_size: 8}
model: {width: 8, layers: 1, heads: 1}
continuation: {tokens: 2}
training: {epochs: 2, batch_size: 16, learning_rate: 0.01, device: cpu}
compare: {arms: [plain, rdrop], seeds: [0], samples: 3}
""")
    assert run("mine.yaml", "--alphas", "1", "--dropouts", "0.2,0.5", "--jobs", "1") == 0
    out, shown = Path("rdrop-runs/mine-sweep-1"), capsys.readouterr()
    assert len([line for line in shown.err.splitlines() if ", seed 1: perplexity" in line]) == 4
    swept = Sweep.model_validate_json((out / "sweep.json").read_text())
    assert [list(each.metrics) for each in swept.tries] == [[1]] * 4
    means = [each.means["perplexity"] for each in swept.tries]
    assert len(set(means)) == 4
    for tried in (swept.tries[:2], swept.tries[2:]):
        lowest = min(tried, key=lambda each: each.means["perplexity"])
        assert swept.chosen[lowest.arm] == Chosen(alpha=lowest.alpha, dropout=lowest.dropout)
    record = RunRecord.model_validate_json((out / "tries/plain-dropout0.5/runs/plain-seed1.json").read_text())
    assert record.run.curves["eval_perplexity"].values[-1] == pytest.approx(record.run.metrics["perplexity"])

    # The texts of validation and test differ, and so would the perplexity of the same run.
    command = shown.out.splitlines()[-1].removeprefix("Next: rdrop ")
    with pytest.raises(SystemExit) as caught:
        main([*shlex.split(command), "--seeds", "1,", "--jobs", "1", "--out", "compared"])
    assert not caught.value.code
    compared = Summary.model_validate_json(Path("compared/summary.json").read_text())
    assert compared.recipe["compare"] == load_recipe(out / "chosen.yaml", ["seeds=1,"]).compare.model_dump(mode="json")
    plain = next(run for run in compared.runs if run.arm == "plain")
    assert plain.metrics["perplexity"] not in means
    assert plain.curves["eval_perplexity"].values[-1] in [pytest.approx(mean) for mean in means[:2]]
