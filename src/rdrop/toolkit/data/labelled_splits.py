"""Labelled tables on disk, read and drawn from, as the splits of a run."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count, islice
from pathlib import Path
from typing import Annotated, Any, Generic, TypeVar
from warnings import warn

import numpy as np
from datasets import Dataset, IterableDataset, concatenate_datasets
from pydantic import Field

from rdrop.errors import RDropWarning, UserError
from rdrop.toolkit.data.file_data import FileData, TableData, draw, hold_out, named_path, split_seed
from rdrop.toolkit.data.label_names import LabelNames, given_names, learned_names
from rdrop.toolkit.data.rows import BadRows
from rdrop.toolkit.task import Rows, Splits

E = TypeVar("E")

CHUNK = 5000  # examples that are tokenized at once: what a tokenizer returns needs far more room than a data set


class LabelledData(TableData):
    """What to train and test on."""

    labels: str | None = Field(
        default=None,
        description="File with the name of a label in each line; the tables then hold names, or their numbers counted "
        "from 0. null: the names are those that the training split has.",
    )
    max_length: Annotated[int, Field(ge=8)] = Field(default=128, description="Tokens of an example at most.")


class Table(ABC, Generic[E]):
    """How a family reads its tables."""

    @abstractmethod
    def examples(self, path: Path, names: LabelNames | None, bad_rows: BadRows) -> Iterator[E]:
        """The rows of a table.

        Args:
            path: The table.
            names: The labels that there are; None: whatever the rows have.
            bad_rows: What becomes of a row that cannot be used, a label that there is not being one reason.
        """

    @abstractmethod
    def labels(self, example: E) -> Iterable[str]:
        """The labels of an example, of which the names are learned."""

    @abstractmethod
    def check(self, names: LabelNames, counts: Counter[str], path: Path) -> list[str]:
        """Refuses a training split whose labels teach nothing; returns what is to be noted about them."""

    @abstractmethod
    def unanswered(self, path: Path, bad_rows: BadRows) -> Iterator[E]:
        """The rows of a file without labels, those of a .txt file among them; the arguments are those of `examples`."""

    def stratum(self, example: E) -> object:  # noqa: ARG002
        """The class by which examples are drawn; None: there are no classes."""
        return None


@dataclass(frozen=True)
class LabelledSplits(Generic[E]):
    """The examples of a run."""

    parts: dict[str, list[E]]
    """Examples in memory: `train` unless it is streamed, `validation` and, if there is one, `test`."""
    train: Callable[[], Iterable[E]]
    """The training examples, from the start each time."""
    names: tuple[str, ...]
    """The labels, in the order of the model's outputs."""
    description: str
    """How many are where, as the end of a sentence."""
    notes: tuple[str, ...]
    """What a careful reader must know."""


def labelled_splits(data: LabelledData, seed: int, table: Table[E]) -> LabelledSplits[E]:
    """Reads the tables that a recipe names, learns the labels from the training split, and draws what is to be drawn.

    Args:
        data: Names the tables.
        seed: Seed of a run; that of the recipe goes before it.
        table: How to read them.

    Raises:
        UserError: A table cannot be used or is too small, or is named for two purposes.
    """
    bad_rows = BadRows(data.on_bad_row)
    file = named_path(data, "labels")
    given = None if file is None else given_names(file, data.encoding)
    paths = split_paths(data)
    path = paths.pop("train")
    everything: Iterable[E] = table.examples(path, given, bad_rows)
    if not data.streaming:
        everything = list(everything)
    counts = Counter(label for example in everything for label in table.labels(example))
    names = given or learned_names(counts, path)
    notes = table.check(names, counts, path)
    others = {part: list(table.examples(other, names, bad_rows)) for part, other in paths.items()}
    told = (*bad_rows.sentences(), *notes)
    if not isinstance(everything, list):
        return LabelledSplits(
            others,
            lambda: table.examples(path, names, BadRows(data.on_bad_row)),
            names.names,
            f"those in {data.train}, streamed, for training, {_described(data, others)}",
            told,
        )
    train, validation, how = _drawn(data, seed, everything, table)
    parts = {"train": train, "validation": validation, **others}
    return LabelledSplits(
        parts,
        lambda: train,
        names.names,
        f"{len(train):,} of the {len(everything):,} in {data.train} for training{how}, {_described(data, parts)}",
        told,
    )


def _drawn(data: FileData, seed: int, everything: list[E], table: Table[E]) -> tuple[list[E], list[E], str]:
    """The training examples, those that are held out of them, and how they were drawn."""
    classes = [table.stratum(example) for example in everything]
    strata = None if None in classes else classes
    drawing, count = split_seed(data, seed), len(everything)
    held_out = np.array([], dtype=np.int64)
    kept = np.arange(count)
    if data.validation is None:
        kept, held_out = hold_out(strata, count, data.validation_fraction, drawing, name=data.train)
    chosen = draw(strata, kept, data.train_size, drawing, name=data.train)
    by_class = "" if strata is None else " by class"
    often = "anew for each seed" if data.split_seed is None else f"once, with seed {drawing}"
    how = f", drawn{by_class} {often}" if len(chosen) < count else ""
    return [everything[i] for i in chosen], [everything[i] for i in held_out], how


def _described(data: FileData, parts: dict[str, list[E]]) -> str:
    """How many examples are for validation and for testing."""
    validation = f"{len(parts['validation']):,} for validation ({data.validation or f'held out of {data.train}'})"
    return f"{validation}, {len(parts['test']):,} for testing ({data.test})" if "test" in parts else validation


def split_paths(data: FileData) -> dict[str, Path]:
    """The tables that a recipe names, by part.

    Args:
        data: Names the tables.

    Raises:
        UserError: One is not there, or is the training split once more.
    """
    paths = {part: path for part in ("train", "validation", "test") if (path := named_path(data, part)) is not None}
    for part, path in paths.items():
        if part != "train" and path == paths["train"]:
            raise UserError(
                f"data.{part} is {data.train}, which is the training split; name another file, or write null"
            )
    return paths


def unlabelled(paths: Sequence[Path], data: LabelledData, table: Table[E]) -> list[E]:
    """The examples of files to be predicted on.

    Args:
        paths: The files.
        data: The section that named the tables of training.
        table: How to read them.

    Raises:
        UserError: A file cannot be used, or there is nothing in them.

    Warns:
        RDropWarning: Rows were left out, as `data.on_bad_row` says.
    """
    bad_rows = BadRows(data.on_bad_row)
    examples = [example for path in paths for example in table.unanswered(path, bad_rows)]
    for sentence in bad_rows.sentences():
        warn(sentence, RDropWarning, stacklevel=2)
    if not examples:
        raise UserError(f"there is nothing to predict in {', '.join(map(str, paths))}; expected at least one text")
    return examples


def tokenized_splits(
    splits: LabelledSplits[E],
    columns: Callable[[Sequence[E]], tuple[dict[str, Any], int]],
    data: LabelledData,
    seed: int,
    *,
    heading: str,
    consequence: str,
) -> Splits:
    """Examples as rows for a model.

    Args:
        splits: The examples.
        columns: Makes columns of some examples, and counts those that had too many tokens.
        data: The section that named the tables.
        seed: Seed of the order in which streamed rows come.
        heading: The start of the description.
        consequence: What became of examples with too many tokens.
    """
    rows: dict[str, Rows] = {}
    notes = list(splits.notes)
    for part, examples in splits.parts.items():
        rows[part], long = tokenized(examples, columns)
        if long:
            notes.append(
                f"{long:,} of {len(examples):,} examples of the {part} split have more than {data.max_length} tokens "
                f"(data.max_length) and {consequence}."
            )
    if "train" not in rows:
        rows["train"] = streamed(
            splits.train, lambda some: columns(some)[0], buffer=data.shuffle_buffer, seed=split_seed(data, seed)
        )
        notes.append(
            f"The training split is streamed and its order random within {data.shuffle_buffer:,} examples; how many of "
            f"them have more than {data.max_length} tokens (data.max_length) and {consequence} is not counted."
        )
    description = f"{heading}: {splits.description}."
    return Splits(rows["train"], rows["validation"], rows.get("test"), description, tuple(notes))


def tokenized(
    examples: Sequence[E], columns: Callable[[Sequence[E]], tuple[dict[str, Any], int]]
) -> tuple[Dataset, int]:
    """Examples as rows in memory, and how many of them have too many tokens.

    Args:
        examples: At least one.
        columns: Makes columns of some examples, and counts those that have too many tokens.

    >>> rows, _ = tokenized(["a", "bc"], lambda some: ({"length": [len(text) for text in some]}, 0))
    >>> rows["length"][:]
    [1, 2]
    """
    parts: list[Dataset] = []
    count = 0
    for start in range(0, len(examples), CHUNK):
        made, long = columns(examples[start : start + CHUNK])
        parts.append(Dataset.from_dict(made))
        count += long
    return concatenate_datasets(parts), count


def streamed(
    examples: Callable[[], Iterable[E]],
    columns: Callable[[list[E]], dict[str, Any]],
    *,
    buffer: int,
    seed: int,
) -> IterableDataset:
    """Rows that are read and made when they are asked for, epoch after epoch without end, and shuffled in a buffer.

    A Trainer counts no epochs of what has no length, and so could not go on within a later one after a stop. Of what
    has no end, there is only one.

    Args:
        examples: Reads the table.
        columns: Makes the columns of some examples.
        buffer: Rows that are held.
        seed: Seed of the order, which is another one in each epoch.

    >>> rows = streamed(lambda: iter("abc"), lambda some: {"text": some}, buffer=10, seed=0)
    >>> sorted(row["text"] for row in islice(rows, 6))
    ['a', 'a', 'b', 'b', 'c', 'c']
    """

    def rows() -> Iterator[dict[str, Any]]:
        remaining = iter(examples())
        while some := list(islice(remaining, CHUNK)):
            made = columns(some)
            for values in zip(*made.values(), strict=True):
                yield dict(zip(made, values, strict=True))

    once = IterableDataset.from_generator(rows).shuffle(seed=seed, buffer_size=buffer)

    def endless() -> Iterator[dict[str, Any]]:
        made = True
        for epoch in count():
            if not made:  # the table has become empty
                return
            once.set_epoch(epoch)
            made = False
            for row in once:
                made = True
                yield row

    return IterableDataset.from_generator(endless)
