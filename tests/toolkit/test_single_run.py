from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import Trainer

from rdrop.errors import UserError
from rdrop.toolkit.arm_names import ArmName
from rdrop.toolkit.single_run import TrainingRecord, read_recipe, read_record, restore, train
from rdrop.toolkit.step_plan import StepPlan
from rdrop.toolkit.tasks.digits import DigitsRecipe

RECIPE = DigitsRecipe.model_validate(
    {
        "data": {"train_size": 96},
        "training": {"epochs": 7, "eval_every_epochs": 3, "save_every_steps": 4, "lr_scheduler": "cosine"},
        "rdrop": {"schedule": "linear_decay", "strategy": "concat"},
        "compare": {"samples": 2},
    }
)
STEPS = 21


class Killed(BaseException):
    """The end of a process, as far as one process can play it."""


class Watched:
    """Progress that is written down; `then` is done after a step."""

    def __init__(self, then: Callable[[int], None] = lambda step: None) -> None:
        self.then = then
        self.began: tuple[int, int] | None = None
        self.judged = False
        self.plans: Mapping[ArmName, StepPlan] = {}
        self.logs: list[tuple[int, dict[str, float]]] = []

    def read(self) -> None:
        pass

    def planned(self, plans: Mapping[ArmName, StepPlan]) -> None:
        self.plans = plans

    def start(self, total_steps: int, made_steps: int) -> None:
        self.began = (total_steps, made_steps)

    def advance(self, step: int) -> None:
        self.then(step)

    def logged(self, step: int, logs: dict[str, float]) -> None:
        self.logs.append((step, logs))

    def judge(self) -> None:
        self.judged = True

    def close(self) -> None:
        pass


def run(out: Path, *, resume: bool = False, arm: Any = "rdrop", **watch: Any) -> TrainingRecord | None:
    return train(RECIPE, out, arm=arm, seed=3, resume=resume, command="rdrop train", progress=Watched(**watch))


def weights(out: Path) -> dict[str, torch.Tensor]:
    return load_file(out / "model" / "model.safetensors")


def same(first: Path, second: Path) -> bool:
    """Whether two models are equal in every bit."""
    one, other = weights(first), weights(second)
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("undisturbed") / "run"
    assert run(out) is not None
    return out


def test_a_run_leaves_a_model_its_recipe_and_its_record(undisturbed: Path) -> None:
    record = read_record(undisturbed)
    assert (record.run.arm, record.run.seed, record.run.optimizer_steps) == ("rdrop", 3, STEPS)
    assert (record.split, record.passes, record.alpha, record.step_compute) == ("test", 2, 1.0, 2.0)
    assert {metric.name for metric in record.metrics} <= record.run.metrics.keys()
    assert "divergence" in record.run.curves
    assert read_recipe(undisturbed).training == RECIPE.training
    task, model = restore(undisturbed)
    assert not model.training
    assert {name: tuple(value.shape) for name, value in model.state_dict().items()} == {
        name: tuple(value.shape) for name, value in weights(undisturbed).items()
    }
    assert task.recipe.compare.seeds == [3]


@pytest.mark.parametrize("step", [2, 4, 6, 9, STEPS])
def test_a_run_that_was_killed_goes_on_to_the_same_weights(undisturbed: Path, tmp_path: Path, step: int) -> None:
    out = tmp_path / "run"

    def kill(at: int) -> None:
        if at == step:
            raise Killed

    with pytest.raises(Killed):
        run(out, then=kill)
    assert not (out / "model").exists()
    assert run(out, resume=True) is not None
    assert same(out, undisturbed)
    assert read_record(out).run.metrics == read_record(undisturbed).run.metrics


def test_a_checkpoint_that_was_cut_off_is_not_used(
    undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    save = Trainer._save_rng_state

    def cut(self: Trainer, folder: str) -> None:
        if folder.endswith("checkpoint-8"):
            raise Killed
        save(self, folder)

    monkeypatch.setattr(Trainer, "_save_rng_state", cut)
    with pytest.raises(Killed):
        run(out)
    monkeypatch.undo()
    assert (out / "checkpoints" / "checkpoint-8" / "optimizer.pt").exists()
    watched = Watched()
    assert train(RECIPE, out, arm="rdrop", seed=3, resume=True, command="rdrop train", progress=watched) is not None
    assert watched.began == (STEPS, 4)
    assert same(out, undisturbed)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_asked_to_stop_it_saves_and_goes_on_from_there(undisturbed: Path, tmp_path: Path, number: int) -> None:
    out = tmp_path / "run"
    assert run(out, then=lambda step: signal.raise_signal(number) if step == 6 else None) is None
    assert (out / "checkpoints" / "checkpoint-6").exists()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    watched = Watched()
    assert train(RECIPE, out, arm="rdrop", seed=3, resume=True, command="rdrop train", progress=watched) is not None
    assert watched.began == (STEPS, 6)
    assert same(out, undisturbed)


PROGRAM = """
import sys
from pathlib import Path
from rdrop.toolkit.single_run import train
from rdrop.toolkit.tasks.digits import DigitsRecipe

class Told:
    def read(self): pass
    def planned(self, plans): pass
    def start(self, *_): pass
    def advance(self, step): print(step, flush=True)
    def logged(self, *_): pass
    def judge(self): pass
    def close(self): pass

recipe = DigitsRecipe.model_validate_json(sys.argv[1])
train(recipe, Path(sys.argv[2]), arm="rdrop", seed=3, resume=False, command="rdrop train", progress=Told())
"""


def test_a_process_that_was_killed_is_resumed_by_another(undisturbed: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", PROGRAM, RECIPE.model_dump_json(), str(out)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())},
    )
    assert process.stdout is not None
    with process:
        assert next(line for line in process.stdout if int(line) >= 10)
        process.kill()
    assert not (out / "run.json").exists()
    assert run(out, resume=True) is not None
    assert same(out, undisturbed)


def test_a_finished_run_is_not_made_again(undisturbed: Path) -> None:
    before = (undisturbed / "model").stat().st_mtime_ns
    watched = Watched()
    again = train(RECIPE, undisturbed, arm="rdrop", seed=3, resume=True, command="", progress=watched)
    assert again == read_record(undisturbed)
    assert watched.began is None
    assert (undisturbed / "model").stat().st_mtime_ns == before


def test_a_folder_of_something_else_is_refused(undisturbed: Path) -> None:
    with pytest.raises(UserError, match=r"already holds a run\. Complete it with --resume"):
        run(undisturbed)
    with pytest.raises(UserError, match="holds a run of the arm rdrop; got plain"):
        run(undisturbed, resume=True, arm="plain")
    with pytest.raises(UserError, match=r"holds a run with another recipe: compare\.seeds is \[3\] there and \[4\]"):
        train(RECIPE, undisturbed, arm="rdrop", seed=4, resume=True, command="", progress=Watched())


def test_a_loss_that_is_no_number_ends_the_run_with_advice(tmp_path: Path) -> None:
    wild = RECIPE.model_copy(update={"training": RECIPE.training.model_copy(update={"learning_rate": 1e30})})
    with pytest.raises(UserError, match=r"the training loss is nan at step .* Lower training\.learning_rate"):
        train(wild, tmp_path / "run", arm="plain", seed=0, resume=False, command="", progress=Watched())


def test_a_full_disk_is_told_as_such_and_nothing_is_lost(undisturbed: Path, tmp_path: Path) -> None:
    import resource

    out = tmp_path / "run"
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)

    def fill(step: int) -> None:
        if step == 7:  # files may no longer grow beyond 100 kB, as if the disk were nearly full
            resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))

    try:
        with pytest.raises(
            UserError, match=r"the disk of .*run is full: .* go on from the last checkpoint with --resume"
        ):
            run(out, then=fill)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)
    assert run(out, resume=True) is not None
    assert same(out, undisturbed)


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        ("run.json", r"run\.json cannot be read: .* Train again into another folder"),
        ("recipe.yaml", r"recipe\.yaml cannot be read: .* Was it changed by hand"),
    ],
)
def test_files_that_were_changed_are_named(undisturbed: Path, tmp_path: Path, broken: str, message: str) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(undisturbed, copy)
    (copy / broken).write_text("{", encoding="utf-8")
    with pytest.raises(UserError, match=message):
        read_record(copy) if broken == "run.json" else read_recipe(copy)


def test_a_folder_without_a_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"holds no finished run \(there is no run\.json\)"):
        read_record(tmp_path)
    with pytest.raises(UserError, match=r"holds no run \(there is no recipe\.yaml\)"):
        restore(tmp_path)
