"""A trained model put to use: judged on a split, or asked about new files."""

from __future__ import annotations

import csv
import io
import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from rdrop.errors import UserError
from rdrop.toolkit.arms import objective, recipe_of
from rdrop.toolkit.recipe import Recipe
from rdrop.toolkit.recipe_file import load_recipe
from rdrop.toolkit.runs import RECIPE_FILE, write_atomically
from rdrop.toolkit.single_run import MODEL_FOLDER, arm_of, read_record, restore
from rdrop.toolkit.summary import Metric
from rdrop.toolkit.task import Task
from rdrop.toolkit.tasks import task_of
from rdrop.toolkit.train import judge, make_trainer

Answer = dict[str, Any]
LABELS = ("label", "labels", "tags", "entities")
SHOWN_NAMES = 5


@dataclass(frozen=True)
class Judgement:
    """What a split says about a trained model."""

    split: str
    data: str
    notes: tuple[str, ...]
    described: tuple[Metric, ...]
    metrics: dict[str, float]


def evaluate_run(run: Path, changes: Sequence[str]) -> Judgement:
    """Judges the model of a run on a split.

    Args:
        run: The folder of `rdrop train`.
        changes: `key=value` words that change its recipe, such as `data.test=other.csv`.

    Raises:
        UserError: The folder holds no finished run, the words or the data are wrong.
    """
    record = read_record(run)
    seed = record.run.seed
    task: Task[Any] = task_of(recipe_of(arm_of(record), _changed(run, changes)))
    splits = task.load(seed)
    learned = names_of(task)
    # After the data: the label names and the vocabulary are those of the model.
    model = task.restore(run / MODEL_FOLDER)
    if names_of(task) != learned:
        raise UserError(
            f"the training data give the labels {_few(learned)}, but the model of {run} knows {_few(names_of(task))}; "
            "expected the training data that it was trained with"
        )
    goal = objective("plain", task.recipe)
    with tempfile.TemporaryDirectory() as folder:
        trainer = make_trainer(task, goal, seed, model, splits, steps=1, nominal=1, folder=folder)
        try:
            found = judge(trainer, task, splits, seed=seed, exhibits=False)
        except FloatingPointError as error:
            raise UserError(f"the model of {run} cannot be judged: {error}") from None
    split = splits.judged_name(task.recipe.compare.split)
    return Judgement(split, splits.description, splits.notes, task.metrics, found.metrics)


def names_of(task: Task[Any]) -> list[str]:
    """What the classes of the logits are called, once `load` or `restore` has learned it; nothing if nobody knows."""
    return list(getattr(task, "names", ()))


def _changed(run: Path, changes: Sequence[str]) -> Recipe:
    """The recipe of a run with some fields changed, and without trackers, which have nothing to log here."""
    recipe = load_recipe(run / RECIPE_FILE, changes)
    return recipe.model_copy(update={"training": recipe.training.model_copy(update={"report_to": []})})


def _few(names: Sequence[str]) -> str:
    """The first names of a list."""
    return ", ".join(names[:SHOWN_NAMES]) + (f" and {len(names) - SHOWN_NAMES} more" if names[SHOWN_NAMES:] else "")


def predict_files(
    run: Path, files: Sequence[Path], *, samples: int, min_confidence: float, seed: int
) -> tuple[int | None, Iterator[Answer]]:
    """What the model of a run says about the rows of some files.

    Args:
        run: The folder of `rdrop train`.
        files: Files or folders of the kinds that its task trains on.
        samples: Monte Carlo dropout, see `rdrop.toolkit.task.Task.predict`.
        min_confidence: Answers with a lower confidence abstain: `abstained` is true, and there is no label. Generated
            text stays, so that it can be looked at.
        seed: Seed of the masks.

    Returns:
        The number of answers, None if it is not known, and the answers in the order of the rows.

    Raises:
        UserError: The folder holds no trained model, or a file cannot be used, or the answers have no confidence to
            compare with `min_confidence`.
    """
    for file in files:
        if not file.exists():
            raise UserError(f"there is no {file}; expected a file or folder to predict on")
    task, model = restore(run)
    rows = task.read(files)
    count = len(rows) if hasattr(rows, "__len__") else None
    if count == 0:
        raise UserError(f"there is nothing to predict in {', '.join(map(str, files))}")
    answers = task.predict(model.to(_device(task.recipe)), rows, samples=samples, seed=seed)
    return count, (_withheld(answer, min_confidence) for answer in answers)


def _device(recipe: Recipe) -> torch.device:
    """Where to predict: on an accelerator, if there is one and the recipe may use it."""
    found = None if recipe.training.device == "cpu" else torch.accelerator.current_accelerator(check_available=True)
    return found or torch.device("cpu")


def _withheld(answer: Mapping[str, Any], min_confidence: float) -> Answer:
    """The answer, or its abstention."""
    if min_confidence == 0:
        return dict(answer)
    if "confidence" not in answer:
        raise UserError("--min-confidence needs answers with a confidence, and this task's have none; leave it out")
    abstained = answer["confidence"] < min_confidence
    kept = {name: None for name in LABELS if abstained and name in answer}
    return {**answer, **kept, "abstained": abstained}


def write_answers(answers: Sequence[Answer], path: Path) -> None:
    """Writes answers as JSON lines or CSV, by the suffix; nested values are JSON in a CSV field.

    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_answers([{"label": "a", "p": {"a": 1.0}}], Path(folder) / "out.csv")
    ...     (Path(folder) / "out.csv").read_text().splitlines()
    ['label,p', 'a,"{""a"": 1.0}"']
    """
    if path.suffix == ".jsonl":
        write_atomically(path, "".join(json.dumps(answer, ensure_ascii=False) + "\n" for answer in answers))
        return
    text = io.StringIO()
    names = list(dict.fromkeys(name for answer in answers for name in answer))
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    for answer in answers:
        writer.writerow({name: json.dumps(v) if isinstance(v, dict | list) else v for name, v in answer.items()})
    write_atomically(path, text.getvalue())
