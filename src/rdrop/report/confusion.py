"""Confusion matrices as tables whose cells are tinted, those of several runs side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rdrop.report.charts import Table
from rdrop.report.number_format import MISSING, count
from rdrop.report.svg import short
from rdrop.toolkit.summary import Confusion

# With more classes the numbers no longer stand side by side on a page.
MOST_CLASSES = 12
MOST_MISTAKES = 20
# In percent. Text in the colour of the page keeps a contrast of 4.5 on every tint up to here, in light and in dark.
STRONGEST_TINT = 45
FAINTEST_MISTAKE = 12
LONGEST_NAME = 28
LONGEST_LEVEL_NAME = 3

Counts = NDArray[np.int64]


@dataclass(frozen=True)
class Cell:
    """A count with its tint in percent; one of 0 has neither tone nor tint."""

    text: str
    tone: str
    tint: int


@dataclass(frozen=True)
class MatrixRow:
    """A true class: what it was taken for, and the share of it that was recognised."""

    label: str
    cells: list[Cell]
    right: str


@dataclass(frozen=True)
class Matrices:
    """What the matrices of several runs have in common, and the rows of each."""

    columns: list[str]
    folded: bool
    upright: bool
    finding: str
    reading: str
    panels: list[list[MatrixRow]]
    mistakes: Table | None


def matrices(names: Sequence[str], confusions: Sequence[Confusion]) -> Matrices:
    """Prepare the confusion matrices of several runs with the same classes.

    With more than 12 classes, the 11 that are part of most confusions in all runs together are kept and all
    others are counted as one, the same in every run.

    Args:
        names: What each run is called; the empty string where there is only one.
        confusions: The matrix of each run, `(C, C)` with the same labels.

    Returns:
        Texts and tints, in which the errors of a run stand out.

    Raises:
        ValueError: If a matrix is not a row of C counts for each of its C labels.

    >>> told = matrices([""], [Confusion(title="", labels=["cat", "dog"], counts=[[8, 2], [0, 5]])])
    >>> told.finding
    'Right: 13 of 15. Most frequent mistake: cat taken for dog (2 times).'
    >>> [cell.text for cell in told.panels[0][0].cells], told.panels[0][0].right
    (['8', '2'], '80%')
    """
    labels = confusions[0].labels
    counts = [_checked(each) for each in confusions]
    right = [np.diag(each) for each in counts]
    kept = _kept(np.sum(counts, axis=0))
    shown_labels = [short(labels[i], LONGEST_NAME) for i in kept]
    reading = (
        "Each row is a true class, each column what it was taken for. Right answers lie on the diagonal; elsewhere, "
        "the stronger the tint, the larger the share of its row."
    )
    if len(kept) < len(labels):
        folded = len(labels) - len(kept)
        shown_labels.append(f"{folded} others")
        reading += (
            f" Of {len(labels)} classes, the {len(kept)} that are part of most confusions are shown; the other "
            f"{folded} are counted as one."
        )
    return Matrices(
        columns=shown_labels,
        folded=len(kept) < len(labels),
        upright=max(map(len, shown_labels), default=0) > LONGEST_LEVEL_NAME,
        finding=_finding(names, labels, counts),
        reading=reading,
        panels=[
            _rows(shown_labels, _fold(each, kept), _fold_one(hits, kept))
            for each, hits in zip(counts, right, strict=True)
        ],
        mistakes=_mistakes(names, labels, counts),
    )


def _checked(confusion: Confusion) -> Counts:
    """The counts as an array, which has to be square."""
    size = len(confusion.labels)
    widths = [len(row) for row in confusion.counts]
    if widths != [size] * size:
        raise ValueError(
            f"The confusion matrix {confusion.title!r} has {count(size, 'label')} and rows of {widths} counts; "
            f"expected {size} rows of {size} counts."
        )
    counts = np.array(confusion.counts, dtype=np.int64).reshape(size, size)
    if (counts < 0).any():
        raise ValueError(f"The confusion matrix {confusion.title!r} holds {counts.min()}; expected counts from 0 on.")
    return counts


def _errors(counts: Counts) -> Counts:
    """The same counts without those on the diagonal."""
    return counts - np.diag(np.diag(counts))


def _kept(counts: Counts) -> list[int]:
    """The classes that get a row of their own, in the order of the labels."""
    if len(counts) <= MOST_CLASSES:
        return list(range(len(counts)))
    errors = _errors(counts)
    most = np.argsort(-(errors.sum(axis=0) + errors.sum(axis=1)), kind="stable")
    return sorted(most[: MOST_CLASSES - 1].tolist())


def _fold_one(values: Counts, kept: list[int]) -> Counts:
    """The values of the kept classes, then the sum of all others if there are any; along the first axis."""
    if len(kept) == len(values):
        return values
    rest = np.delete(values, kept, axis=0).sum(axis=0, keepdims=True)
    return np.concatenate([values[kept], rest])


def _fold(counts: Counts, kept: list[int]) -> Counts:
    """The matrix with all classes but the kept ones as one."""
    return _fold_one(_fold_one(counts, kept).T, kept).T


def _rows(labels: Sequence[str], counts: Counts, right: Counts) -> list[MatrixRow]:
    """The rows of one matrix."""
    rows: list[MatrixRow] = []
    for i, label in enumerate(labels):
        total = int(counts[i].sum())
        shares = counts[i] / max(total, 1)
        cells = [
            Cell(f"{n:,}", *_look(share, on_diagonal=i == j))
            for j, (n, share) in enumerate(zip(counts[i].tolist(), shares.tolist(), strict=True))
        ]
        rows.append(MatrixRow(label, cells, f"{100 * right[i] / total:.0f}%" if total else MISSING))
    return rows


def _look(share: float, *, on_diagonal: bool) -> tuple[str, int]:
    """The tone of a cell and how strong its tint is."""
    if share == 0:
        return "", 0
    if on_diagonal:
        return "right", round(STRONGEST_TINT * share)
    # The root and a tint to start from let the few errors of a good model be seen.
    return "wrong", round(FAINTEST_MISTAKE + (STRONGEST_TINT - FAINTEST_MISTAKE) * share**0.5)


def _finding(names: Sequence[str], labels: Sequence[str], counts: Sequence[Counts]) -> str:
    """How many were right, and the most frequent mistake, of each run."""
    right = [f"{name} {np.trace(each):,} of {each.sum():,}".lstrip() for name, each in zip(names, counts, strict=True)]
    told: list[str] = []
    for name, each in zip(names, counts, strict=True):
        errors = _errors(each)
        if not errors.any():
            told.append(f"{name} none".lstrip())
            continue
        i, j = divmod(int(errors.argmax()), len(labels))
        words = f"{short(labels[i], LONGEST_NAME)} taken for {short(labels[j], LONGEST_NAME)}"
        told.append(f"{name}: {words} ({count(int(errors[i, j]), 'time')})".removeprefix(": "))
    return f"Right: {', '.join(right)}. Most frequent mistake: {'; '.join(told)}."


def _mistakes(names: Sequence[str], labels: Sequence[str], counts: Sequence[Counts]) -> Table | None:
    """The most frequent mistakes of all runs together, with the count of each run."""
    errors = _errors(np.sum(counts, axis=0))
    found = np.argsort(-errors, axis=None, kind="stable")[: np.count_nonzero(errors)]
    if not len(found):
        return None
    rows = []
    for place in found[:MOST_MISTAKES].tolist():
        i, j = divmod(place, len(labels))
        rows.append([f"{labels[i]} taken for {labels[j]}", *(f"{each[i, j]:,}" for each in counts)])
    number = f"The {len(rows)} most frequent of {len(found):,}" if len(rows) < len(found) else "All"
    return Table(f"{number} kinds of mistake", ["Mistake", *(name or "Times" for name in names)], rows)
