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


from rdrop.errors import UserError
from rdrop.toolkit.arms import objective
from rdrop.toolkit.recipe_file import load_recipe, recipe_text
from rdrop.toolkit.runs import write_atomically
from rdrop.toolkit.single_run import MODEL_FOLDER, read_record, read_recipe, restore
from rdrop.toolkit.summary import Metric
from rdrop.toolkit.tasks import task_of
from rdrop.toolkit.train import judge, make_trainer

Answer = dict[str, Any]


@dataclass(frozen=True)
class Judgement:
    """What a split says about a trained model."""

    split: str
    data: str
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
    task = task_of(_changed(run, changes))
    splits = task.load(record.run.seed)
    # After the data: the label names and the vocabulary are those of the model.
    model = task.restore(run / MODEL_FOLDER)
    goal = objective("plain", task.recipe)
    with tempfile.TemporaryDirectory() as folder:
        trainer = make_trainer(task, goal, record.run.seed, model, splits, steps=1, nominal=1, folder=folder)
        found = judge(trainer, task, splits, seed=record.run.seed, exhibits=False)
    split = splits.judged_name(task.recipe.compare.split)
    return Judgement(split, splits.description, task.metrics, found.metrics)


def _changed(run: Path, changes: Sequence[str]) -> Any:
    """The recipe of a run with some fields changed."""
    recipe = read_recipe(run)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "recipe.yaml"
        path.write_text(recipe_text(recipe), encoding="utf-8")
        return load_recipe(path, changes)


def predict_files(
    run: Path, files: Sequence[Path], *, samples: int, min_confidence: float, seed: int
) -> tuple[int | None, Iterator[Answer]]:
    """What the model of a run says about the rows of some files.

    Args:
        run: The folder of `rdrop train`.
        files: Files or folders of the kinds that its task trains on.
        samples: Monte Carlo dropout, see `rdrop.toolkit.task.Task.predict`.
        min_confidence: Answers with a lower confidence are withheld: they get `abstained` true and no label.
        seed: Seed of the masks.

    Returns:
        The number of answers, None if it is not known, and the answers in the order of the rows.

    Raises:
        UserError: The folder holds no trained model, or a file cannot be used.
    """
    task, model = restore(run)
    for file in files:
        if not file.exists():
            raise UserError(f"there is no {file}; expected a file or folder to predict on")
    rows = task.read(files)
    count = len(rows) if hasattr(rows, "__len__") else None
    if count == 0:
        raise UserError(f"nothing to predict in {', '.join(map(str, files))}")
    answers = task.predict(model, rows, samples=samples, seed=seed)
    return count, (_withheld(answer, min_confidence) for answer in answers)


def _withheld(answer: Mapping[str, Any], min_confidence: float) -> Answer:
    """The answer, or its abstention."""
    if min_confidence == 0 or "confidence" not in answer:
        return dict(answer)
    abstained = answer["confidence"] < min_confidence
    kept = {"label": None} if abstained and "label" in answer else {}
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
