from __future__ import annotations

import io
import json
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

import rdrop.report.page
import rdrop.toolkit.compare
from rdrop.cli import main
from rdrop.cli.progress import RichProgress
from rdrop.errors import UserError
from rdrop.toolkit.pool import Progress
from rdrop.toolkit.recipe import Recipe
from rdrop.toolkit.recipe_fields import recipe_fields
from rdrop.toolkit.recipe_file import recipe_text
from rdrop.toolkit.summary import Arm, Difference, Environment, Interval, Metric, Run, Summary, Timing
from rdrop.toolkit.tasks.digits import DigitsRecipe


def run(*words: str) -> int:
    """Exit code of the command in this process."""
    with pytest.raises(SystemExit) as caught:
        main(["compare", *words])
    assert caught.value.code is None or isinstance(caught.value.code, int)
    return caught.value.code or 0


def summary(*, failed: bool = False) -> Summary:
    """A small comparison of two arms."""
    metric = Metric(name="accuracy", label="Accuracy", higher_is_better=True, percent=True, explanation="Right.")
    difference = Difference(mean=0.02, low=0.01, high=0.03, p_value=0.004, per_seed={0: 0.01, 1: 0.03})

    def arm(name: str, mean: float, difference: dict[str, Difference]) -> Arm:
        return Arm(
            name=name,
            description=name,
            passes=1,
            alpha=0.0,
            strategy="single",
            optimizer_steps=10,
            step_compute=1.25,
            total_compute=1.25,
            seeds=[0, 1],
            failed={2: "the loss is nan"} if failed and name == "rdrop" else {},
            metrics={"accuracy": Interval(mean=mean, low=mean - 0.01, high=mean + 0.01)},
            differences=difference,
        )

    runs = [
        Run(arm=name, seed=seed, status="finished", metrics={"accuracy": 0.9})
        for name in ("plain", "rdrop")
        for seed in (0, 1)
    ]
    if failed:
        runs.append(Run(arm="rdrop", seed=2, status="failed", error="the loss is nan"))
    return Summary(
        title="Small",
        task="image-classification",
        data="Nothing.",
        recipe=DigitsRecipe().model_dump(mode="json"),
        metrics=[metric],
        arms=[arm("plain", 0.9, {}), arm("rdrop", 0.92, {"accuracy": difference})],
        runs=runs,
        headline="It helped.",
        notes=["A note."],
        timing=Timing(
            step_ms={"plain": 1.0, "rdrop": 1.5},
            step_ratio={"rdrop": Interval(mean=1.5, low=None, high=None)},
            run_seconds={},
            jobs=1,
        ),
        environment=Environment(created="", machine="", versions={}, command="rdrop compare"),
    )


class Calls(list[dict[str, object]]):
    """What the toolkit was asked for."""


@pytest.fixture
def calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Calls:
    """An empty working folder, and a toolkit that notes what it is asked for and answers at once."""
    monkeypatch.chdir(tmp_path)
    noted = Calls()

    def compare(recipe: Recipe, out: Path, **rest: object) -> Summary:
        noted.append({"recipe": recipe, "out": out, **rest})
        out.mkdir(parents=True, exist_ok=True)
        (out / "recipe.yaml").write_text(recipe_text(recipe))
        return summary()

    monkeypatch.setattr(rdrop.toolkit.compare, "compare", compare)
    return noted


def test_the_recipe_and_its_changes_reach_the_toolkit(calls: Calls) -> None:
    Path("my.yaml").write_text("training: {epochs: 2}\nrdrop: {alpha: 9}\n")
    assert run("my.yaml", "alpha=3", "--seeds", "3", "--arms", "plain,rdrop", "--jobs", "7", "--out", "here") == 0
    (call,) = calls
    recipe = call["recipe"]
    assert isinstance(recipe, Recipe)
    assert (recipe.training.epochs, recipe.rdrop.alpha) == (2, 3.0)
    assert (recipe.compare.seeds, recipe.compare.arms) == ([0, 1, 2], ["plain", "rdrop"])
    assert (call["out"], call["jobs"], call["resume"]) == (Path("here"), 7, False)


def test_the_recorded_command_repeats_the_comparison(calls: Calls) -> None:
    assert run("digits", "title=Two words", "--seeds", "4,2") == 0
    words = shlex.split(str(calls[0]["command"]))
    assert words[:2] == ["rdrop", "compare"]
    assert run(*words[2:]) == 0
    assert calls[0]["recipe"] == calls[1]["recipe"] != Recipe()


@pytest.mark.parametrize(("seeds", "expected"), [("3", [0, 1, 2]), ("7,", [7]), ("4,2", [4, 2]), (" 1 ", [0])])
def test_seeds_are_a_count_or_a_list(calls: Calls, seeds: str, expected: list[int]) -> None:
    assert run("--seeds", seeds) == 0
    recipe = calls[0]["recipe"]
    assert isinstance(recipe, Recipe)
    assert recipe.compare.seeds == expected


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--seeds", "0"], "got --seeds 0, expected a count from 1 to 1000; for the seed 0 alone write 0,"),
        (
            ["--seeds", "a,b"],
            "on the command line, --seeds a,b: compare.seeds[0]: got the text 'a', expected a whole",
        ),
        (["--seeds", "1,1"], "on the command line, --seeds 1,1: compare.seeds: 1 is listed twice"),
        (
            ["--arms", "plain,rdorp"],
            "on the command line, --arms plain,rdorp: compare.arms[1]: got the text 'rdorp'",
        ),
        (["--arms", "rdrop"], "on the command line, --arms rdrop: compare.arms: got rdrop, without plain"),
        (
            ["--seeds", "3", "seeds=1,2"],
            "on the command line, --seeds 3: compare.seeds is already set by seeds=1,2",
        ),
        (["digits", "more.yaml"], "got 'more.yaml', expected key=value"),
        (["--resume"], "nothing to resume: rdrop-runs holds no folder digits-1"),
    ],
)
def test_a_mistake_is_told_before_anything_is_made(
    calls: Calls, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    assert run(*words) == 2
    assert message in capsys.readouterr().err
    assert (calls, list(Path().iterdir())) == ([], [])


def test_each_comparison_gets_a_folder_of_its_own_and_resume_takes_the_newest(calls: Calls) -> None:
    Path("rdrop-runs/digits-old").mkdir(parents=True)
    Path("my.yaml").write_text("")
    assert [run(), run("alpha=3"), run("my.yaml"), run("--resume"), run()] == [0] * 5
    assert [str(call["out"]) for call in calls] == [
        f"rdrop-runs/{name}" for name in ("digits-1", "digits-2", "my-1", "digits-2", "digits-3")
    ]
    # Without words, what is resumed is the recipe of the folder.
    assert calls[3]["recipe"] == calls[1]["recipe"] != calls[0]["recipe"]
    assert [call["resume"] for call in calls] == [False, False, False, True, False]


def test_what_is_probably_not_meant_is_told_before_the_runs(calls: Calls, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("model.dropout=0") == 0
    assert "note: model.dropout is 0" in capsys.readouterr().err


def test_the_table_and_the_places_of_the_results_go_to_standard_output(
    calls: Calls, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("--out", "here") == 0
    shown = capsys.readouterr()
    for part in (
        "Accuracy (%)",
        "90.0 [89.0, 91.0]",
        "92.0 [91.0, 93.0]",
        "+2.0 [1.0, 3.0]",
        "p = 0.004",
        "1.25\N{MULTIPLICATION SIGN}",
        "1.50\N{MULTIPLICATION SIGN}",
        "It helped.",
        "Note: A note.",
        "here/report.html",
        "here/summary.json",
    ):
        assert part in shown.out, part
    assert "<html" in Path("here/report.html").read_text()


def test_failed_runs_are_shown_and_change_the_exit_code(
    calls: Calls, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def compare(recipe: Recipe, out: Path, **rest: object) -> Summary:
        out.mkdir()
        return summary(failed=True)

    monkeypatch.setattr(rdrop.toolkit.compare, "compare", compare)
    assert run("--out", "here") == 1
    assert "rdrop, seed 2: failed: the loss is nan" in capsys.readouterr().out


def raising(error: BaseException) -> Callable[..., Summary]:
    def compare(*_: object, **__: object) -> Summary:
        raise error

    return compare


def test_ctrl_c_tells_how_to_go_on(
    calls: Calls, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(rdrop.toolkit.compare, "compare", raising(KeyboardInterrupt()))
    assert run("alpha=3", "--out", "my runs") == 130
    expected = "stopped; rdrop compare digits alpha=3 --resume --out 'my runs' goes on from here"
    assert expected in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (UserError("the folder holds another recipe"), "error: the folder holds another recipe\n"),
        (PermissionError(13, "Permission denied", "/closed"), "error: /closed: Permission denied\n"),
    ],
)
def test_errors_of_the_toolkit_and_of_the_disk_are_messages(
    calls: Calls,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: Exception,
    message: str,
) -> None:
    monkeypatch.setattr(rdrop.toolkit.compare, "compare", raising(error))
    assert run() == 2
    assert message in capsys.readouterr().err


def test_the_help_explains_every_field(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--help-recipe") == 0
    shown = " ".join(capsys.readouterr().out.split())
    for text in recipe_fields(DigitsRecipe).values():
        assert f"{text.key} {text.meaning} Expected: {text.expected}." in shown


def test_the_schema_accepts_a_summary(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--schema") == 0
    schema = json.loads(capsys.readouterr().out)
    assert set(schema["properties"]) == set(json.loads(summary().model_dump_json()))


FINISHED = Run(arm="plain", seed=0, status="finished", metrics={"accuracy": 0.96512, "nll": 0.1, "ece": 1.0})
FAILED = Run(arm="rdrop", seed=1, status="failed", error="[bold]nan[/bold]")


def show_progress(progress: Progress) -> None:
    progress.start(total_runs=4, total_steps=200, finished_runs=1)
    progress.advance(50)
    progress.finished(FINISHED)
    progress.finished(FAILED)
    progress.close()
    progress.close()


def test_away_from_a_terminal_each_run_is_one_line() -> None:
    out = io.StringIO()
    show_progress(RichProgress(Console(file=out, width=40)))
    assert out.getvalue().splitlines() == [
        "1 of 4 runs are finished already",
        "[2/4] plain, seed 0: accuracy 0.9651, nll 0.1",
        "[3/4] rdrop, seed 1: failed: [bold]nan[/bold]",
    ]


def test_a_terminal_has_a_bar_and_tells_of_failed_runs_alone() -> None:
    out = io.StringIO()
    show_progress(RichProgress(Console(file=out, width=100, force_terminal=True, color_system=None)))
    assert "3/4 runs" in out.getvalue()
    assert "50/200 steps" in out.getvalue()
    assert "rdrop, seed 1: failed: [bold]nan[/bold]" in out.getvalue()
    assert "plain, seed 0" not in out.getvalue()


def test_a_real_comparison_from_the_command_to_the_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("my.yaml").write_text("training: {epochs: 1}\ndata: {train_size: 40}\ncompare: {samples: 2}\n")
    assert run("my.yaml", "--seeds", "2", "--arms", "plain,rdrop", "--jobs", "1") == 0
    shown = capsys.readouterr()
    assert len([line for line in shown.err.splitlines() if ", seed " in line]) == 4
    folder = Path("rdrop-runs/my-1")
    found = Summary.model_validate_json((folder / "summary.json").read_text())
    assert [(run.arm, run.seed, run.status) for run in found.runs] == [
        (arm, seed, "finished") for arm in ("plain", "rdrop") for seed in (0, 1)
    ]
    assert found.headline in " ".join(shown.out.split())
    assert "<html" in (folder / "report.html").read_text()
