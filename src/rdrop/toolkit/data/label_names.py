"""Names of labels: learned from the training split, or given by a file."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rdrop.errors import UserError
from rdrop.toolkit.data.rows import BadValue
from rdrop.toolkit.data.text_lines import text_lines
from rdrop.toolkit.recipe_fields import nearest

LISTED = 30  # names in a message
LONGEST = 60  # characters of one
DIGITS = 100  # of a number; Python reads no more than some thousands


@dataclass(frozen=True)
class LabelNames:
    """The labels that there are.

    Args:
        names: Their names, in the order of the model's outputs.
        path: The file that they come from.
        numbered: They are the lines of a file, and a number may stand for a name, counted from 0.
    """

    names: tuple[str, ...]
    path: Path
    numbered: bool = False

    def known(self, value: str, column: str) -> str:
        """The name that a value of a table stands for.

        Args:
            value: A name, or with `numbered` also the number of one; what is a name is not taken for a number.
            column: Where it stands, for the message.

        Raises:
            BadValue: There is no such label.

        >>> LabelNames(("anger", "joy"), Path("labels.txt"), numbered=True).known("1", "labels")
        'joy'
        """
        if value in self.names:
            return value
        if self.numbered and value.isdecimal() and len(value) <= DIGITS and int(value) < len(self.names):
            return self.names[int(value)]
        close = nearest(value, self.names)
        hint = f" (did you mean {_quoted(close)}?)" if close else ""
        if self.numbered:
            raise BadValue(
                f"{column}: got the label {_quoted(value)}, expected one of the {len(self.names)} names in "
                f"{self.path}, or its number, 0 to {len(self.names) - 1}{hint}"
            )
        told = ", ".join(f"{name:.{LONGEST}}" for name in self.names[:LISTED]) + (
            ", ..." if len(self.names) > LISTED else ""
        )
        raise BadValue(
            f"{column}: got the label {_quoted(value)}, which no row of {self.path} has; expected one of {told}{hint}"
        )


def given_names(path: Path, encoding: str) -> LabelNames:
    """The names in a file with one in each line.

    Args:
        path: The file.
        encoding: Its encoding.

    Raises:
        UserError: It cannot be read, has an empty line, or has a name twice.
    """
    names = [line.strip() for line in text_lines(path, encoding)]
    while names and not names[-1]:
        names.pop()
    for number, name in enumerate(names, 1):
        if not name:
            raise UserError(f"{path}:{number}: an empty line; expected the name of a label in each line")
        if names.index(name) != number - 1:
            raise UserError(f"{path}:{number}: {name!r} is there twice, first in line {names.index(name) + 1}")
    if not names:
        raise UserError(f"{path} is empty; expected the name of a label in each line")
    return LabelNames(tuple(names), path, numbered=True)


def learned_names(labels: Iterable[str], path: Path) -> LabelNames:
    """The different labels of a training split, sorted; in numeric order where all of them are whole numbers.

    Args:
        labels: The labels of its rows.
        path: The split.

    >>> learned_names(["10", "9", "10"], Path("train.csv")).names
    ('9', '10')
    """
    found = set(labels)
    whole = all(label.removeprefix("-").isdecimal() and len(label) <= DIGITS for label in found)
    return LabelNames(tuple(sorted(found, key=(lambda label: (int(label), label)) if whole else None)), path)


def require_examples(names: LabelNames, found: Collection[str], path: Path, *, column: str) -> None:
    """Refuses a training split that cannot teach its classes apart.

    Args:
        names: The classes.
        found: Those that rows have.
        path: The split.
        column: Where the labels stand.

    Raises:
        UserError: There is one class only, or a class without a row.
    """
    if len(names.names) < 2:
        raise UserError(
            f"{path}: the label of every row is {_quoted(names.names[0])} (column {column}); expected at least two "
            "classes"
        )
    empty = [name for name in names.names if name not in found]
    if empty:
        raise UserError(
            f"{path}: no row has the label {', '.join(map(_quoted, empty[:LISTED]))} of {names.path}; add "
            "examples of each class, or take its name out of the file"
        )


def without_examples(names: LabelNames, found: Collection[str]) -> list[str]:
    """A sentence for the notes about labels that no training example has, if there are any.

    Args:
        names: The labels.
        found: Those that rows have.

    >>> without_examples(LabelNames(("anger", "joy"), Path("labels.txt")), ["joy"])
    ['No training example has 1 of the 2 labels: anger.']
    """
    missing = [name for name in names.names if name not in found]
    if not missing:
        return []
    told = _listed(missing)
    return [f"No training example has {len(missing)} of the {len(names.names)} labels: {told}."]


def _quoted(name: str) -> str:
    """A name in a message."""
    return repr(name if len(name) <= LONGEST else name[: LONGEST - 3] + "...")


def _listed(names: Sequence[str]) -> str:
    """The first few of some names."""
    return ", ".join(name[:LONGEST] for name in names[:LISTED]) + (", ..." if len(names) > LISTED else "")
