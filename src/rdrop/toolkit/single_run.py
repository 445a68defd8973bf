"""One run that is kept: checkpoints to resume from, the trained model, and the record of what it is worth."""

from __future__ import annotations

import errno
import json
import math
import shutil
import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import Any, Literal, Protocol

import yaml
from pydantic import Field, ValidationError
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from rdrop.errors import RDropWarning, UserError
from rdrop.integrations.transformers import RDropTrainer
from rdrop.toolkit.arm_names import ArmName
from rdrop.toolkit.arms import notes_on_form, objective, recipe_of
from rdrop.toolkit.environment import machine, versions
from rdrop.toolkit.recipe import Recipe
from rdrop.toolkit.runs import RECIPE_FILE, claimed, write_atomically
from rdrop.toolkit.step_plan import StepPlan, plan_step
from rdrop.toolkit.summary import Environment, Metric, Record, Run
from rdrop.toolkit.task import Splits, Task
from rdrop.toolkit.tasks import recipe_class, task_of
from rdrop.toolkit.trackers import TENSORBOARD_FOLDER, tracked
from rdrop.toolkit.train import (
    UNSHOWN,
    build_model,
    curves,
    example_batch,
    judge,
    make_trainer,
    planned_steps,
    steps_of,
)

RECORD_FILE = "run.json"
MODEL_FOLDER = "model"
CHECKPOINTS = "checkpoints"
ARM_FILE = f"{CHECKPOINTS}/arm"
EXAMPLE_FILE = "example.safetensors"
KEPT_CHECKPOINTS = 2
FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


class TrainingRecord(Record):
    """What `rdrop train` leaves behind beside the model: the schema of `run.json`."""

    schema_version: Literal[1] = 1
    title: str = Field(description="Title of the recipe.")
    task: str = Field(description="Task family.")
    data: str = Field(description="What the model was trained on, in one sentence with the counts.")
    recipe: dict[str, object] = Field(description="The complete recipe, from which the run can be repeated.")
    split: str = Field(description="Split of the metrics: `test`, or `validation`.")
    metrics: list[Metric] = Field(description="The metrics in the order of the table; the first is the main one.")
    run: Run
    passes: int = Field(description="Forward passes in a training step (M).")
    alpha: float = Field(description="Weight of the divergence, in units of this package.")
    step_compute: float = Field(description="Operations of one training step as a ratio to one of plain training.")
    notes: list[str] = Field(description="What a careful reader must know.")
    seconds: float = Field(description="Time of the last, undisturbed part of the training.")
    environment: Environment


class Progress(Protocol):
    """Who is told how far a run is."""

    def read(self) -> None:
        """The data are read and checked now."""

    def planned(self, plans: Mapping[ArmName, StepPlan]) -> None:
        """This is what a step will be."""

    def start(self, total_steps: int, made_steps: int) -> None:
        """Training begins, or goes on after so many steps."""

    def advance(self, step: int) -> None:
        """So many steps were made in all."""

    def logged(self, step: int, logs: dict[str, float]) -> None:
        """After so many steps, training or an evaluation logged these quantities."""

    def judge(self) -> None:
        """The trained model is judged and saved now."""

    def close(self) -> None:
        """It is over, however it went; maybe told more than once."""


def train(
    recipe: Recipe, out: Path, *, arm: ArmName, seed: int, resume: bool, command: str, progress: Progress
) -> TrainingRecord | None:
    """Trains one model, judges it and keeps it.

    The folder then holds `recipe.yaml`, `checkpoints/`, `model/` and `run.json`, and `tensorboard/` if the recipe
    reports there. Checkpoints are complete or not used, so that a run that was killed at any moment goes on from the
    last one, to the same weights as an undisturbed run: bit for bit on a CPU.

    Args:
        recipe: What to train.
        out: The folder, made if needed.
        arm: The arm of the recipe.
        seed: Its seed.
        resume: Whether to go on in a folder that holds a run.
        command: The command that repeats this run, for the record.
        progress: Is told how far it is.

    Returns:
        The record, or None if the run was asked to stop (Ctrl-C or SIGTERM); it can then be resumed.

    Raises:
        UserError: The folder belongs to something else, the data are not what the recipe says, the disk is full, or the
            loss is no longer finite.
    """
    kept = recipe.model_copy(update={"compare": recipe.compare.model_copy(update={"seeds": [seed]})})
    with claimed(out, kept, resume=resume, what="run", results=CHECKPOINTS):
        _check_arm(out, arm)
        found = read_record(out) if (out / RECORD_FILE).exists() else None
        if found is not None:
            return found
        try:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always", RDropWarning)
                record = _train(kept, out, arm, seed, command, progress)
        except (OSError, RuntimeError, SafetensorError) as error:
            if not _is_full(error):
                raise
            raise UserError(
                f"the disk of {out} is full: {error}. Make room, then go on from the last checkpoint with --resume."
            ) from error
        finally:
            progress.close()
        if record is None:
            return None
        told = [str(warning.message) for warning in caught if issubclass(warning.category, RDropWarning)]
        record = record.model_copy(update={"notes": [*record.notes, *dict.fromkeys(told)]})
        write_atomically(out / RECORD_FILE, record.model_dump_json(indent=1) + "\n")
        return record


def read_record(folder: Path) -> TrainingRecord:
    """The record of a finished run.

    Raises:
        UserError: There is none, or it cannot be understood.
    """
    path = folder / RECORD_FILE
    try:
        return TrainingRecord.model_validate_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(
            f"{folder} holds no finished run (there is no {RECORD_FILE}); expected the folder of `rdrop train`, which "
            "goes on with --resume if it was stopped"
        ) from None
    except (ValidationError, UnicodeDecodeError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{path} cannot be read: {reason}. Train again into another folder.") from error


def arm_of(record: TrainingRecord) -> ArmName:
    """The arm of a finished run, whose own settings its model has."""
    return record.run.arm


def read_recipe(folder: Path) -> Recipe:
    """The recipe of a run's folder.

    Raises:
        UserError: There is none, or it cannot be understood.
    """
    path = folder / RECIPE_FILE
    try:
        held = yaml.safe_load(path.read_text(encoding="utf-8"))
        return recipe_class(held["task"]).model_validate(held)
    except FileNotFoundError:
        raise UserError(
            f"{folder} holds no run (there is no {RECIPE_FILE}); expected the folder of `rdrop train`"
        ) from None
    except (yaml.YAMLError, UnicodeDecodeError, ValidationError, KeyError, TypeError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{path} cannot be read: {reason}. Was it changed by hand?") from error


def restore(folder: Path) -> tuple[Task[Any], nn.Module]:
    """The task of a finished run and its trained model, in evaluation mode.

    Raises:
        UserError: The folder holds none.
    """
    recipe = read_recipe(folder)
    task = task_of(recipe_of(arm_of(read_record(folder)), recipe))
    if not (folder / MODEL_FOLDER).is_dir():
        raise UserError(
            f"{folder} holds no trained model any more (there is no {MODEL_FOLDER}/); train again into another folder"
        )
    return task, task.restore(folder / MODEL_FOLDER).eval()


def held_arm(folder: Path) -> str | None:
    """The arm of the run in a folder; None if there is none, or its training has not begun."""
    path = folder / ARM_FILE
    return path.read_text(encoding="utf-8") if path.exists() else None


def _check_arm(out: Path, arm: ArmName) -> None:
    """Refuses the folder of another arm."""
    held = held_arm(out)
    if held not in (None, arm):
        raise UserError(f"the folder {out} holds a run of the arm {held}; got {arm}. Name another folder with --out.")


def _train(
    recipe: Recipe, out: Path, arm: ArmName, seed: int, command: str, progress: Progress
) -> TrainingRecord | None:
    progress.read()
    task = task_of(recipe_of(arm, recipe))
    splits = task.load(seed)
    nominal = planned_steps(task, splits)
    write_atomically(out / ARM_FILE, arm)
    model = build_model(task, seed)
    batch = example_batch(task, splits)
    plan = plan_step(model, batch, objective(arm, task.recipe), task.recipe.rdrop)
    goal = plan.goal
    progress.planned({arm: plan})
    steps = steps_of(goal, model, batch, recipe, nominal)
    training = task.recipe.training
    trainer = make_trainer(
        task,
        goal,
        seed,
        model,
        splits,
        steps=steps,
        nominal=nominal,
        folder=str(out / CHECKPOINTS),
        save_strategy="steps",
        save_steps=training.save_every_steps or math.ceil(steps / 10),
        save_total_limit=KEPT_CHECKPOINTS,
        run_name=out.name,
    )
    checkpoint = _last_checkpoint(out / CHECKPOINTS)
    began = time.perf_counter()
    progress.start(steps, 0 if checkpoint is None else _step_of(checkpoint))
    try:
        with _stop_requests() as asked:
            trainer.add_callback(_Keeper(progress, asked))
            with tracked(trainer, out / TENSORBOARD_FOLDER):
                trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
        if trainer.state.global_step < steps:
            return None
        progress.judge()
        found = judge(trainer, task, splits, seed=seed, exhibits=True)
    except FloatingPointError as error:
        raise UserError(
            f"{error}. Lower training.learning_rate, or clip gradients with training.max_grad_norm; nothing of this "
            "run can be used, so start it in another folder."
        ) from error
    _keep_model(task, trainer, splits, out)
    run = Run(
        arm=arm,
        seed=seed,
        status="finished",
        optimizer_steps=trainer.state.global_step,
        metrics=found.metrics,
        curves=curves(trainer.state, goal),
        reliability=found.reliability,
        exhibits=found.exhibits,
    )
    return TrainingRecord(
        title=recipe.title,
        task=recipe.FAMILY,
        data=splits.description,
        recipe=recipe.model_dump(mode="json"),
        split=splits.judged_name(recipe.compare.split),
        metrics=list(task.metrics),
        run=run,
        passes=goal.passes,
        alpha=goal.alpha,
        step_compute=plan.compute,
        notes=[*splits.notes, *notes_on_form(arm, plan.form, recipe)],
        seconds=time.perf_counter() - began,
        environment=Environment(
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            machine=machine(),
            versions=versions(),
            command=command,
        ),
    )


def _keep_model(task: Task[Any], trainer: RDropTrainer, splits: Splits, out: Path) -> None:
    """Writes the model's folder, which is there whole or not at all, with a batch of inputs to export it with."""
    part = out / f".{MODEL_FOLDER}.tmp"
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir()
    model: Any = trainer.accelerator.unwrap_model(trainer.model)
    task.save(model.cpu(), part)
    batch = example_batch(task, splits)
    save_file({name: column.contiguous() for name, column in batch.items()}, part / EXAMPLE_FILE)
    shutil.rmtree(out / MODEL_FOLDER, ignore_errors=True)
    part.rename(out / MODEL_FOLDER)


def _last_checkpoint(folder: Path) -> Path | None:
    """The newest complete checkpoint; parts of others, which a kill left behind, are removed."""
    complete = []
    for path in folder.glob("checkpoint-*"):
        try:
            # The Trainer writes this file last.
            json.loads((path / "trainer_state.json").read_text(encoding="utf-8"))
            complete.append(path)
        except (OSError, ValueError):
            shutil.rmtree(path)
    return max(complete, key=_step_of, default=None)


def _step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.rpartition("-")[2])


def _is_full(error: BaseException) -> bool:
    """Whether writing failed for want of room; the writers of tensors put the system's error into words."""
    if isinstance(error, OSError):
        return error.errno in FULL
    return any(text in str(error) for text in ("os error 28", "os error 27", "No space left", "file write failed"))


@contextmanager
def _stop_requests() -> Iterator[Callable[[], bool]]:
    """Gives a function that tells whether Ctrl-C or SIGTERM came; a second one ends the process at once."""
    came = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield came.is_set
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def note(number: int, _: FrameType | None) -> None:
        came.set()
        signal.signal(number, before[signal.Signals(number)])

    for number in before:
        signal.signal(number, note)
    try:
        yield came.is_set
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class _Keeper(TrainerCallback):
    """Tells the progress, stops with a checkpoint when asked to, and ends a run whose loss is no longer finite."""

    def __init__(self, progress: Progress, asked: Callable[[], bool]) -> None:
        self.progress, self.asked = progress, asked

    def on_step_end(
        self,
        args: TrainingArguments,  # noqa: ARG002
        state: TrainerState,
        control: TrainerControl,
        **_: Any,
    ) -> None:
        self.progress.advance(state.global_step)
        if self.asked():
            control.should_save = control.should_training_stop = True

    def on_log(
        self,
        args: TrainingArguments,  # noqa: ARG002
        state: TrainerState,
        control: TrainerControl,  # noqa: ARG002
        **kwargs: Any,
    ) -> None:
        logs = kwargs["logs"]
        if not math.isfinite(logs.get("loss", 0.0)):
            raise FloatingPointError(f"the training loss is {logs['loss']} at step {state.global_step}")
        shown = {name: logs[name] for name in logs if isinstance(logs[name], float) and name not in UNSHOWN}
        self.progress.logged(state.global_step, shown)
