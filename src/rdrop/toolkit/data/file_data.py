"""Data in the user's files: the fields that every family shares, the paths, and what is drawn from a table."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, ClassVar, Literal, Self, TypedDict

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator
from sklearn.model_selection import train_test_split

from rdrop.errors import UserError
from rdrop.toolkit.data.delimited import Quoting
from rdrop.toolkit.data.files import inside
from rdrop.toolkit.data.rows import BadValue
from rdrop.toolkit.recipe import Data, Rate, fault

Indices = NDArray[np.int64]


class FileData(Data):
    """What to train and test on."""

    folder: str = Field(
        default=".", description="Folder from which the paths below start; none of them may lead out of it."
    )
    train: str = Field(default="train.csv", description="Training split.")
    validation: str | None = Field(
        default=None,
        description="Validation split, for learning curves and choices; null: a part of the training split.",
    )
    test: str | None = Field(
        default=None, description="Test split; null: there is none, and runs are judged on the validation split."
    )
    validation_fraction: Rate = Field(
        default=0.1, description="Share of the training split that is held out where `validation` is null."
    )
    train_size: Annotated[int, Field(ge=1)] | None = Field(
        default=None, description="Training examples to draw, by class where there are classes; null: all of them."
    )
    on_bad_row: Literal["fail", "skip"] = Field(
        default="fail",
        description="What to do about a row that cannot be used: stop, or leave it out, count and list it.",
    )


class TableForm(TypedDict):
    """Keyword arguments of `read_table` and `table_columns`."""

    delimiter: str | None
    quoting: Quoting
    encoding: str


class TableData(FileData):
    """What to train and test on."""

    TRAINED_ON: ClassVar[str] = "training split"
    """What messages call that which is streamed."""

    delimiter: str | None = Field(
        default=None, description="Character between the fields of a text table; null: that of its suffix."
    )
    quoting: Quoting = Field(
        default="auto",
        description="Whether fields may stand in double quotes; `auto`: in .csv they may, in .tsv they may not.",
    )
    encoding: str = Field(default="utf-8", description="Encoding of text files.")
    streaming: bool = Field(
        default=False,
        description="Whether the training split is read anew in every epoch, in constant memory, in place of once; "
        "needs `training.steps` and a split in `validation`.",
    )
    shuffle_buffer: Annotated[int, Field(ge=1)] = Field(
        default=10_000, description="Streamed examples that are held at a time, to be handed out in random order."
    )

    @property
    def form(self) -> TableForm:
        """How text tables are written."""
        return {"delimiter": self.delimiter, "quoting": self.quoting, "encoding": self.encoding}

    @model_validator(mode="after")
    def _streamable(self) -> Self:
        if self.streaming and self.validation is None:
            raise fault(
                f"got null, and a streamed {self.TRAINED_ON} has no part to hold out; name a file",
                "data.validation",
                "data.streaming",
            )
        if self.streaming and self.train_size is not None:
            raise fault(
                f"got {self.train_size:,}, but nothing can be drawn from a streamed {self.TRAINED_ON}; write null",
                "data.train_size",
                "data.streaming",
            )
        return self


def hold_out(
    labels: Sequence[object] | None, count: int, fraction: float, seed: int, *, name: str
) -> tuple[Indices, Indices]:
    """Positions of a table to train on, and of the part that is held out, drawn by class.

    A class with one example stays in training.

    Args:
        labels: Class of each of the rows; None: there are no classes.
        count: Rows (N).
        fraction: Share to hold out, 0 < fraction < 1.
        seed: Seed of the draw.
        name: The table, for messages.

    Raises:
        UserError: There are too few rows to hold any out.

    >>> kept, held_out = hold_out(["a", "b"] * 10, 20, 0.2, seed=0, name="train.csv")
    >>> len(kept), [["a", "b"][i % 2] for i in held_out].count("a")
    (16, 2)
    """
    drawable = _repeated(labels, count)
    size = round(fraction * count)
    classes = 1 if labels is None else max(1, len({labels[i] for i in drawable}))
    if size < classes or len(drawable) - size < classes:
        of, each = ("", "row") if labels is None else (f" of {classes} classes", "of each class")
        raise UserError(
            f"{name}: got {count:,} rows{of}, of which data.validation_fraction {fraction:g} holds out {size}; "
            f"expected at least one {each} on either side. Add rows, set another fraction, or name a file in "
            "data.validation."
        )
    stratify = None if labels is None else [labels[i] for i in drawable]
    _, held_out = train_test_split(drawable, test_size=size, stratify=stratify, random_state=seed)
    return np.setdiff1d(np.arange(count), held_out), np.sort(held_out)


def draw(labels: Sequence[object] | None, indices: Indices, size: int | None, seed: int, *, name: str) -> Indices:
    """So many of these positions, drawn by class.

    Args:
        labels: Class of every row of the table; None: there are no classes.
        indices: Positions to draw from.
        size: How many; None: all.
        seed: Seed of the draw.
        name: The table, for messages.

    Raises:
        UserError: There are fewer, or fewer are wanted than there are classes.

    >>> drawn = draw(["a", "b"] * 10, np.arange(20), 4, seed=0, name="train.csv")
    >>> sorted(i % 2 for i in drawn.tolist())
    [0, 0, 1, 1]
    """
    if size is None or size == len(indices):
        return indices
    if size > len(indices):
        raise UserError(f"{name}: data.train_size is {size:,}, but there are only {len(indices):,} rows to draw from")
    here = None if labels is None else [labels[i] for i in indices]
    drawable = indices[_repeated(here, len(indices))]
    classes = 1 if here is None else len(set(here))
    if size < classes:
        raise UserError(f"{name}: data.train_size is {size:,}, expected at least {classes}, one example for each class")
    if len(drawable) - size < classes:  # nearly everything: what is left out cannot be spread over the classes
        return np.sort(np.random.default_rng(seed).permutation(indices)[:size])
    stratify = None if labels is None else [labels[i] for i in drawable]
    drawn, _ = train_test_split(drawable, train_size=size, stratify=stratify, random_state=seed)
    return np.sort(drawn)


def _repeated(labels: Sequence[object] | None, count: int) -> Indices:
    """Positions whose class has at least two examples."""
    if labels is None:
        return np.arange(count)
    counts = Counter(labels)
    return np.array([i for i, label in enumerate(labels) if counts[label] > 1], dtype=np.int64)


def split_seed(data: Data, seed: int) -> int:
    """The seed of the draws: that of the recipe, or the run's own."""
    return seed if data.split_seed is None else data.split_seed


def named_path(data: FileData, key: str) -> Path | None:
    """The path that a field of `data` names, in the data folder; None where the field is null.

    Args:
        data: The section.
        key: The field, for example `train`.

    Raises:
        UserError: It leads out of the folder, or there is nothing.
    """
    name: str | None = getattr(data, key)
    if name is None:
        return None
    folder = Path(data.folder)
    try:
        return existing(folder, inside(folder, name), key)
    except BadValue as error:
        raise UserError(f"data.{key}: {error} (data.folder)") from None


def existing(folder: Path, path: Path, key: str) -> Path:
    """The path, which must exist.

    Raises:
        UserError: It does not.
    """
    if not path.exists():
        raise UserError(f"data.{key}: there is no {path}; expected a file or folder in {folder} (data.folder)")
    return path
