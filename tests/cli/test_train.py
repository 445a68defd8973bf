from __future__ import annotations

import io
import json
import re
import shlex
import signal
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from command_line import rdrop, start_rdrop
from rdrop.cli.progress import StepProgress
from rdrop.toolkit import trackers
from rdrop.toolkit.single_run import TrainingRecord, read_record
from rdrop.toolkit.tasks.digits import DigitsTask

SMALL = ["digits", "data.train_size=96", "epochs=4", "eval_every_epochs=2", "compare.samples=2"]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def train(*words: str | Path) -> int:
    return rdrop("train", *SMALL, *words)


def test_a_newcomers_run_ends_with_a_table_a_model_and_the_next_command(
    here: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert train() == 0
    out, err = capfd.readouterr()
    run = Path("rdrop-runs/digits-train-1")
    record = read_record(run)
    assert f"{100 * record.run.metrics['accuracy']:.2f} %" in out
    assert f"model   {run / 'model'}\nreport  {run / 'report.html'}\n" in out
    assert out.endswith(f"Next: rdrop predict {run} FILES...\n")
    assert (run / "model" / "model.safetensors").exists()
    assert "<h1>Digits with 300 labels</h1>" in (run / "report.html").read_text()
    # Nothing of other packages: what it will cost, one line for each log, and one for each evaluation.
    cost, err = err.split("\n", 1)
    assert cost == "Operations of a step, to a plain one: rdrop 1.10× (shared)"
    assert [line.partition(":")[0] for line in err.splitlines()] == [f"step {step}" for step in (3, 6, 6, 9, 12, 12)]
    assert re.fullmatch(r"step 6: loss [\d.]+, divergence [\d.e-]+, agreement [\d.]+", err.splitlines()[1])
    assert re.fullmatch(r"step 6: eval_accuracy [\d.]+, eval_nll [\d.]+", err.splitlines()[2])


def test_the_command_of_the_record_repeats_the_run(here: Path) -> None:
    assert train("--arm", "twice", "--seed", "7", "--out", "first") == 0
    record = read_record(Path("first"))
    assert (record.run.arm, record.run.seed, record.passes, record.alpha) == ("twice", 7, 2, 0.0)
    program, *words = shlex.split(record.environment.command)
    assert program == "rdrop"
    assert rdrop(*words, "--out", "second") == 0
    assert read_record(Path("second")).run == record.run


def test_a_program_gets_the_record(capsys: pytest.CaptureFixture[str]) -> None:
    assert train("--json", "--arm", "plain") == 0
    record = TrainingRecord.model_validate_json(capsys.readouterr().out)
    assert record == read_record(Path("rdrop-runs/digits-train-1"))


def test_each_run_gets_a_folder_of_its_own_and_resume_finds_the_newest(capsys: pytest.CaptureFixture[str]) -> None:
    assert train("--arm", "plain") == train("--arm", "twice") == 0
    assert sorted(path.name for path in Path("rdrop-runs").iterdir()) == ["digits-train-1", "digits-train-2"]
    record = (Path("rdrop-runs/digits-train-2/run.json")).read_bytes()
    capsys.readouterr()
    assert rdrop("train", "--resume") == 0  # finished already: recipe, arm and seed are those of the folder
    assert "model   rdrop-runs/digits-train-2/model" in capsys.readouterr().out
    assert Path("rdrop-runs/digits-train-2/run.json").read_bytes() == record


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["--arm", "twise"],
            "error: got --arm twise, expected one of plain, twice, rdrop, longer, ",
        ),
        (["data.train_sise=50"], "data.train_sise is not a key of a recipe; did you mean data.train_size?\n"),
        (["--resume"], "error: nothing to resume: rdrop-runs holds no folder digits-train-1;"),
        (["data.train_size=1700", "epochs=0"], "expected a whole number, at least 1"),
    ],
)
def test_a_mistake_is_one_message_before_anything_is_made(
    here: Path, words: list[str], message: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert rdrop("train", "digits", *words) == 2
    out, err = capfd.readouterr()
    assert message in err
    assert "Traceback" not in err
    assert out == ""
    assert not list(here.iterdir())


def test_a_folder_that_holds_a_run_is_not_overwritten(capsys: pytest.CaptureFixture[str]) -> None:
    assert train("--out", "mine") == 0
    assert train("--out", "mine") == 2
    assert "error: the folder mine already holds a run. Complete it with --resume" in capsys.readouterr().err
    assert train("--out", "mine", "--resume", "--arm", "plain") == 2
    assert "mine holds a run of the arm rdrop; got plain" in capsys.readouterr().err


def test_what_to_beware_of_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert train("model.dropout=0") == 0
    err = capsys.readouterr().err
    assert "note: model.dropout is 0: the passes are identical and the arm rdrop cannot differ from twice.\n" in err
    assert err.count("note: ") == len(set(re.findall("note: .*", err)))
    assert "RDropWarning" not in err


def test_stopped_by_ctrl_c_it_says_how_to_go_on_and_does(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["digits", "data.train_size=96", "epochs=80", "eval_every_epochs=80", "compare.samples=2", "--seed", "5"]
    process = start_rdrop(here, "train", *words, "--arm", "plain", "--out", "my run")
    assert process.stderr is not None
    with process:
        assert process.stderr.readline().startswith("step 3: loss")
        process.send_signal(signal.SIGINT)
        told = process.stderr.read()
    assert process.returncode == 130
    assert "Traceback" not in told
    match = re.search(r"^stopped; (rdrop train .*) goes on from here$", told, re.MULTILINE)
    assert match
    assert not Path("my run/model").exists()
    checkpoints = list(Path("my run/checkpoints").glob("checkpoint-*"))
    assert checkpoints
    step = max(int(path.name.rpartition("-")[2]) for path in checkpoints)
    assert rdrop(*shlex.split(match[1])[1:]) == 0
    assert f"going on after {step} of 240 steps" in capsys.readouterr().err
    record = read_record(Path("my run"))
    assert (record.run.arm, record.run.seed, record.run.optimizer_steps) == ("plain", 5, 240)


def test_stopped_before_the_training_it_says_how_to_go_on_too(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stopped(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(DigitsTask, "load", stopped)
        assert train("--out", "mine") == 130
    match = re.search(r"stopped; rdrop (train .*) goes on from here", capsys.readouterr().err)
    assert match
    assert rdrop(*shlex.split(match[1])) == 0


def test_a_tracker_that_is_not_installed_is_told_before_training(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(trackers, "find_spec", lambda name: None)
    assert train("training.report_to=[mlflow,wandb]", "--out", "mine") == 2
    err = capsys.readouterr().err
    assert "training.report_to names mlflow and wandb, which Python does not find; pip install mlflow wandb," in err
    assert not Path("mine/recipe.yaml").exists()


@pytest.mark.filterwarnings("ignore::DeprecationWarning:tensorboard")
def test_tensorboard_gets_all_parts_of_the_loss_in_one_place(here: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # type: ignore[import-untyped]

    assert train("training.report_to=[tensorboard]", "alpha=2", "--out", "mine") == 0
    files = list(here.rglob("events.out.tfevents.*"))
    assert {file.parent for file in files} == {here / "mine" / "tensorboard"}
    events: Any = EventAccumulator(str(here / "mine" / "tensorboard"))
    events.Reload()
    logged = {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
    parts = ["train/loss", "train/task_loss", "train/divergence", "train/alpha"]
    assert {*parts, "train/agreement", "eval/accuracy"} <= logged.keys()
    assert [step for step, _ in logged["train/loss"]] == [3, 6, 9, 12]
    for (_, loss), (_, task), (_, divergence), (_, alpha) in zip(*(logged[tag] for tag in parts), strict=True):
        assert alpha == 2
        assert loss == pytest.approx(task + alpha * divergence, rel=1e-3)


def test_a_terminal_shows_the_last_of_everything() -> None:
    screen = io.StringIO()
    progress = StepProgress(Console(file=screen, force_terminal=True, width=140))
    progress.read()
    progress.start(total_steps=2000, made_steps=1200)
    progress.logged(1210, {"loss": 0.25, "divergence": 0.125, "agreement": 0.5, "alpha": 1.0})
    progress.logged(1210, {"eval_bleu": 33.25, "eval_nll": 2.5, "eval_chrf": 50.0})
    progress.advance(1210)
    progress.judge()
    progress.close()
    progress.close()
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", screen.getvalue())
    assert "going on after 1,200 of 2,000 steps" in text
    assert "1,210/2,000 steps" in text
    assert "loss 0.25, divergence 0.125, agreement 0.5, eval_bleu 33.25, eval_nll 2.5" in text
    assert "Judging the model" in text
    assert "eval_chrf" not in text


def test_one_pass_has_no_divergence_to_show() -> None:
    lines = io.StringIO()
    progress = StepProgress(Console(file=lines))
    progress.start(total_steps=10, made_steps=0)
    progress.logged(5, {"loss": 0.25, "divergence": 0.0})
    progress.logged(10, {"epoch": 1.0})
    progress.close()
    assert lines.getvalue() == "step 5: loss 0.25\n"


def test_the_schema_of_the_record_is_stable_under_json() -> None:
    assert train("--out", "mine") == 0
    text = Path("mine/run.json").read_text()
    assert json.loads(TrainingRecord.model_validate_json(text).model_dump_json()) == json.loads(text)


def test_a_budget_is_told_before_and_after_the_training(capfd: pytest.CaptureFixture[str]) -> None:
    assert train("strategy=concat", "budget=1.25") == 0
    err = capfd.readouterr().err
    assert err.startswith("Operations of a step, to a plain one: rdrop 1.25× (concat, for 0.25 of the examples)\n")
    note = "Within 1.25 times the operations of a plain step, rdrop makes its further passes for 0.25 of the examples."
    assert note in read_record(Path("rdrop-runs/digits-train-1")).notes
    assert "Within 1.25 times" in err


def test_an_arm_that_contradicts_the_recipe_is_one_message(capfd: pytest.CaptureFixture[str]) -> None:
    assert train("--arm", "last-2", "strategy=concat") == 2
    assert capfd.readouterr().err.startswith(
        "error: arm last-2: rdrop.branch_at: got -2, and concat for rdrop.strategy"
    )
    assert train("--arm", "last-19") == 2
    assert capfd.readouterr().err.startswith("error: the passes of the arm cannot be made: branch_at is -19, but")
