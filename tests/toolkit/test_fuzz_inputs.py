"""Recipes, tables and images are damaged together: there is a message, or rows that are right.

Every table is read a second time, by the few lines of `read_again`, which share nothing with the reader under test.
`RDROP_FUZZ_EXAMPLES` sets the number of examples of each kind of data.
"""

from __future__ import annotations

import gzip
import io
import json
import os
import re
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from types import FrameType
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from command_line import rdrop
from damaged_data import FAMILIES, STAGES, Case, damaged_case, key_in, key_of_colour, tag_of, text_answer
from rdrop.errors import UserError
from rdrop.toolkit.recipe import Recipe
from rdrop.toolkit.recipe_file import load_recipe
from rdrop.toolkit.task import Splits, Task
from rdrop.toolkit.tasks import task_of
from rdrop.toolkit.train import build_model, planned_steps

EXAMPLES = int(os.environ.get("RDROP_FUZZ_EXAMPLES", "150"))
RUN = ["training.steps=1", "compare.samples=2", "training.device=cpu"]
SECONDS = 60  # of one example, far more than any needs; other work may share the machine

Answered = tuple[tuple[Any, ...], Any]  # the texts of a row, or the name of its image, and the answer


class Hang(BaseException):
    """Not caught by `except Exception`."""


# What the rows say, and what an independent reader of the same files says.


def fields_of(text: str, delimiter: str, quoted: bool) -> list[list[str]]:
    """Rows of delimited text, character by character."""
    rows: list[list[str]] = []
    row: list[str] = []
    cell, inside, at = "", False, 0
    text = text.replace("\r\n", "\n") if not quoted else text
    while at < len(text):
        char = text[at]
        if inside and char == '"' and text[at + 1 : at + 2] == '"':
            cell, at = cell + '"', at + 1
        elif quoted and char == '"' and (inside or not cell):
            inside = not inside
        elif not inside and char == delimiter:
            row, cell = [*row, cell], ""
        elif (not inside and char == "\n") or (not inside and text[at : at + 2] == "\r\n"):
            at += char == "\r"
            if row or cell:
                rows.append([*row, cell])
            row, cell = [], ""
        else:
            cell += char
        at += 1
    return [*rows, [*row, cell]] if row or cell else rows


def read_again(name: str, content: bytes, data: Any) -> list[dict[str, Any]]:
    """All rows of a table, in memory."""
    if name.endswith(".parquet"):
        found: list[dict[str, Any]] = pq.read_table(io.BytesIO(content)).to_pylist()
        return found
    text = (gzip.decompress(content) if name.endswith(".gz") else content).decode(data.encoding).removeprefix("\ufeff")
    if ".jsonl" in name:
        return [json.loads(line) for line in text.split("\n") if line.strip(" \t\r")]
    quoted = data.quoting == "double" or (data.quoting == "auto" and ".csv" in name)
    header, *rows = fields_of(text, data.delimiter or ("," if ".csv" in name else "\t"), quoted)
    assert all(len(row) == len(header) for row in rows), "rows of other lengths than the header"
    return [dict(zip(header, row, strict=True)) for row in rows]


def expected(made: Case, recipe: Any, part: str) -> list[Answered]:
    """The rows of a split's file, usable or not."""
    data, name = recipe.data, str(made.data[part])
    if (content := made.files.get(name)) is None:  # a folder of classes
        below = sorted(other for other in made.files if other.startswith(f"{name}/"))
        return [((other,), other.split("/")[1]) for other in below]
    rows = read_again(name, content, data)
    match made.recipe["task"]:
        case "text-classification":
            columns, answer = [data.text, *([data.pair] if data.pair else [])], data.label
        case "token-classification":
            return [(tuple(row[data.tokens]), tuple(str(tag).strip() for tag in row[data.tags])) for row in rows]
        case "image-classification" if rows and isinstance(rows[0].get(data.image), bytes):
            return [((f"{name}, row {at}",), one_class(row[data.label])) for at, row in enumerate(rows, 1)]
        case "image-classification":
            columns, answer = [data.image], data.label
        case "translation":
            columns, answer = [data.source], data.target
        case "summarization":
            columns, answer = [data.document], data.summary
        case _:
            columns, answer = [data.text_column], None
    found = [(tuple(row.get(column) for column in columns), row.get(answer)) for row in rows]
    if made.recipe["task"] == "text-classification":
        return [(words, read_answer(value, data)) for words, value in found]
    if made.recipe["task"] == "image-classification":
        return [(words, one_class(value)) for words, value in found]
    return found


def read_answer(value: Any, data: Any) -> Any:
    if data.answer == "multi-label":
        parts = value.split(data.label_separator) if isinstance(value, str) else value or []
        return tuple(sorted({str(part).strip() for part in parts if str(part).strip()}))
    if data.answer == "regression":
        try:
            return float(value)
        except (TypeError, ValueError, OverflowError):
            return value
    return one_class(value)


def one_class(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value).strip()


def answers(task: Any, rows: Any) -> list[Answered]:
    """The rows of a split, from what the model is given."""
    match task.recipe.task:
        case "text-classification":
            return [(tuple(row["texts"]), text_label(task, row["labels"])) for row in rows]
        case "token-classification":
            return tagged(task, rows)
        case "image-classification":
            return [((photo.name,), task.names[label]) for photo, label in zip(rows.photos, rows.labels, strict=True)]
        case _:
            decode = task.tokenizer.decode
            sides = ("input_ids", "labels")
            each = rows if not hasattr(rows, "__len__") else map(rows.__getitem__, range(len(rows)))
            texts_of = ([decode(row[side], skip_special_tokens=True) for side in sides] for row in each)
            return [((source,), target) for source, target in texts_of]


def text_label(task: Any, label: Any) -> Any:
    if task.recipe.data.answer == "multi-label":
        return tuple(sorted(name for name, there in zip(task.names, label, strict=True) if there))
    return label[0] if task.recipe.data.answer == "regression" else task.names[label]


def tagged(task: Any, rows: Any) -> list[Answered]:
    """Sentences, of which a long one stands in several rows."""
    found: list[tuple[list[str], list[str]]] = []
    latest = None
    for row in rows:
        if row["sentence"] != latest:
            found.append(([], []))
        latest = row["sentence"]
        found[-1][0].extend(row["words"])
        found[-1][1].extend(task.names[row["labels"][position]] for position in row["positions"])
    return [(tuple(words), tuple(tags)) for words, tags in found]


def running(task: Any, rows: Any) -> list[int]:
    """The tokens that are predicted, of which there is one for each of the text."""
    return [int(token) for row in rows for token in row["labels"] if token != -100]


def same(task: str, got: Answered, wanted: Answered) -> bool:
    """Whether a row is that of the file; texts that are written for texts may have been cut."""
    if task not in ("translation", "summarization"):
        return got == wanted
    both = [(got[0][0], wanted[0][0]), (got[1], wanted[1])]
    return all(isinstance(whole, str) and whole.startswith(text.rstrip("\ufffd")) for text, whole in both)


def check_rows(made: Case, recipe: Any, task: Any, splits: Splits) -> None:
    """The rows are those of the files, each with its own answer."""
    data, name = recipe.data, recipe.task
    held_out = data.validation is None
    skips = data.on_bad_row == "skip"
    for part in ("train", "validation", "test"):
        if getattr(data, part) is None:
            continue
        split = getattr(splits, part)
        if name == "language-modeling":
            check_text(made, data, task, splits, part)
            continue
        try:
            wanted = expected(made, recipe, part)
        except Exception:
            assert skips, "the toolkit reads what another reader cannot"
            continue
        if part == "train" and getattr(data, "streaming", False):
            if name == "token-classification":  # the rows of a long sentence are shuffled too
                continue
            once = len(wanted) - left_out(splits.notes, str(data.train))
            split = islice(split, 1 if skips and made.damaged else once)  # it has no end
        got = answers(task, split)
        if part == "train" and held_out and splits.validation is not None:
            got += answers(task, splits.validation)
        if name == "image-classification":
            assert not {row[0][0] for row in got} & made.bad_files
        if made.keyed:
            for row in got:
                check_key(made, row)
        for row in got:
            at = next((at for at, other in enumerate(wanted) if same(name, row, other)), None)
            assert at is not None or (skips and made.damaged), f"{row!r:.300} is not in {part}"
            if at is not None:
                del wanted[at]
        if not skips and data.train_size is None and not getattr(data, "streaming", False):
            assert not wanted, f"{len(wanted)} rows are missing from {part}: {wanted[:2]!r:.300}"
        if skips and not made.damaged and (part != "train" or data.train_size is None):
            assert len(wanted) == left_out(splits.notes, str(getattr(data, part)))
    if name == "image-classification" and made.keyed:
        for rows in (splits.train, splits.validation, splits.test):
            for photo in rows.photos if rows is not None else ():
                pixel: Any = photo.image().resize((1, 1), Image.Resampling.BOX).getpixel((0, 0))
                assert photo.label == STAGES[key_of_colour(pixel) % 3]
                assert key_in(photo.name) in (None, key_of_colour(pixel))


def left_out(notes: tuple[str, ...], name: str) -> int:
    """How many rows, or files, the notes say were left out."""
    found = (re.match(r"(\d+) (?:row|file)s? of (\S+) (?:was|were) skipped", note) for note in notes)
    return sum(int(match[1]) for match in found if match and f"/{name}" in match[2])


def check_key(made: Case, row: Answered) -> None:
    """The answer of a row that was not touched follows from its key."""
    texts_, answer = row
    match made.recipe["task"]:
        case "text-classification":
            keys = {key_in(text) for text in texts_}
            (key,) = keys
            right = text_answer(made.data["answer"], key or 0)
            assert answer == (tuple(sorted(right)) if isinstance(right, list) else right)
        case "token-classification":
            assert list(answer) == [tag_of(word) for word in texts_]
        case "translation" | "summarization":
            assert key_in(texts_[0]) == key_in(answer)
        case "image-classification" if key_in(texts_[0]) is not None:
            assert answer == STAGES[(key_in(texts_[0]) or 0) % 3]


def check_text(made: Case, data: Any, task: Any, splits: Splits, part: str) -> None:
    """Running text is all there, in its order; white space between documents does not count."""
    if data.train_size is not None or (data.streaming and part == "train"):
        return
    ids = running(task, getattr(splits, part))
    if part == "train" and data.validation is None:
        ids += running(task, splits.validation)
    name = str(getattr(data, part))
    content = made.files[name]
    if Path(name).suffix == ".txt":
        text = content.decode(data.encoding)
    else:
        try:
            text = "\n".join(str(row[data.text_column]) for row in read_again(name, content, data))
        except Exception:
            assert data.on_bad_row == "skip", "the toolkit reads what another reader cannot"
            return
        if data.on_bad_row == "skip":
            return
    got = task.tokenizer.decode(ids, skip_special_tokens=True)
    assert "".join(got.split()) == "".join(text.removeprefix("\ufeff").split())


# The tests.


@contextmanager
def in_time() -> Iterator[None]:
    """Ends what does not end by itself."""

    def end(number: int, frame: FrameType | None) -> None:
        raise Hang(f"not done after {SECONDS} seconds")

    before = signal.signal(signal.SIGALRM, end)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def looked_at(path: Path) -> tuple[Recipe, Task[Any], Splits]:
    """What a command does before it trains, and a batch through the model."""
    recipe = load_recipe(path)
    task = task_of(recipe)
    splits = task.load(recipe.compare.seeds[0])
    planned_steps(task, splits)
    model = build_model(task, 0)
    batch = next(iter(DataLoader(splits.train, batch_size=2, collate_fn=task.collate)))
    with torch.no_grad():
        logits = model(**batch)["logits"]
    assert torch.isfinite(logits).all()
    return recipe, task, splits


def check_message(made: Case, message: str) -> None:
    """One text that names a file, a field or a place in the recipe."""
    names = {part for name in (*made.files, *made.links) for part in name.split("/")} | {"recipe.yaml", *made.tables}
    assert 10 < len(message) < 3000
    assert "Traceback" not in message
    assert any(name in message for name in names) or re.search(r"(data|model|training|rdrop|compare)\.\w+", message)


def look(made: Case, folder: Path) -> bool:
    """Whether there are rows; anything but right rows or a good message is a failure."""
    folder.mkdir(parents=True)
    path = made.write(folder)
    try:
        recipe, task, splits = looked_at(path)
    except UserError as error:
        check_message(made, str(error))
        return False
    misread = not made.fields and any(table.refused for table in made.tables.values())
    assert not made.refused, "there should be a message"
    assert not misread, "there should be a message about a column"
    check_rows(made, recipe, task, splits)
    return True


@pytest.mark.parametrize("family", FAMILIES)
def test_damaged_data_are_rows_that_are_right_or_a_message(family: str, tmp_path: Path) -> None:
    rows = 0
    for number in range(EXAMPLES):
        made = damaged_case(family, number)
        try:
            with in_time():
                rows += look(made, tmp_path / str(number) / "data")
        except (Exception, Hang) as error:
            error.add_note(f"example {number} of {family}: {made.told}, {made.recipe}")
            raise
    assert EXAMPLES / 10 < rows < EXAMPLES * 9 / 10  # it is neither that everything is refused, nor that nothing is


@pytest.mark.parametrize(
    ("command", "count", "families"), [("train", 3, [*FAMILIES]), ("compare", 1, ["texts", "images"])]
)
def test_a_command_on_damaged_data_ends_well_or_with_one_message(
    command: str,
    count: int,
    families: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    for family in families:
        examples = (damaged_case(family, number) for number in range(1000, 2000))
        # A comparison that is not refused starts processes; those have tests of their own.
        chosen = (made for made in examples if command == "train" or made.refused)
        for number, made in enumerate(islice(chosen, count)):
            folder = tmp_path / family / str(number) / "data"
            folder.mkdir(parents=True)
            path = made.write(folder)
            code = rdrop(command, path, *RUN, "--out", folder.parent / "run")
            out, err = capfd.readouterr()
            told = f"example {number} of {family}: {made.told}\n{err}"
            assert "Traceback" not in out + err, told
            if code == 0:
                assert (folder.parent / "run" / "run.json").exists(), told
                assert not made.refused, told
            else:
                assert code == 2, told
                assert out == "", told
                assert re.match("(note: .*\\n)*error: ", err), told
                check_message(made, err.partition("error: ")[2])
