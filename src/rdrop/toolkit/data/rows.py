"""One row of the user's data: its values, what they must be, and what becomes of a row that breaks a rule."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any, Literal

from rdrop.errors import UserError
from rdrop.toolkit.plain_yaml import shown

Policy = Literal["fail", "skip"]

LISTED = 100  # bad rows of which each is kept in words
QUOTED = 3  # of these, the ones that a sentence about a file repeats


class BadValue(ValueError):
    """What is wrong with one row: what was got, what was expected and, where it is not plain, what to do."""


@dataclass(frozen=True, slots=True)
class Row:
    """One row of a table."""

    path: Path
    """The table."""
    number: int
    """Line of a text file in which the row begins, the header being line 1; in Parquet the row, from 1."""
    values: dict[str, Any]
    """Column to value: text from CSV and TSV, whatever JSON or Parquet holds otherwise."""


def text_value(row: Row, column: str) -> str:
    """The text of a column, as it stands.

    Args:
        row: The row.
        column: One of its columns.

    Returns:
        The text, with the spaces around it.

    Raises:
        BadValue: It is no text, or there is nothing but white space in it.

    >>> text_value(Row(Path("train.csv"), 2, {"text": " Good. "}), "text")
    ' Good. '
    """
    value = row.values.get(column)
    if not isinstance(value, str):
        raise BadValue(f"{column}: got {shown_value(value)}, expected text")
    if not value.strip():
        raise BadValue(f"{column}: got an empty text, expected at least one word")
    return value


def number_value(row: Row, column: str) -> float:
    """The number of a column.

    Args:
        row: The row.
        column: One of its columns.

    Returns:
        A finite number.

    Raises:
        BadValue: It is no number, or NaN, or infinite.

    >>> number_value(Row(Path("train.csv"), 2, {"score": "3.75"}), "score")
    3.75
    """
    value = row.values.get(column)
    number = math.nan
    # Python's own reading of text is wider than that of other programs: it takes 1_000 for a thousand.
    if isinstance(value, int | float | Decimal | str) and not isinstance(value, bool) and "_" not in str(value):
        try:
            number = float(value)
        except (ValueError, OverflowError):
            number = math.nan
    if not math.isfinite(number):
        raise BadValue(f"{column}: got {shown_value(value)}, expected a finite number such as 3.75")
    return number


def label_value(row: Row, column: str) -> str:
    """The name of a class in a column; the text `1` of a CSV file and the number 1 of JSON lines are one class.

    Args:
        row: The row.
        column: One of its columns.

    Returns:
        The name, without spaces around it.

    Raises:
        BadValue: It is neither text nor a whole number, or it is empty.

    >>> label_value(Row(Path("train.jsonl"), 1, {"label": 1}), "label")
    '1'
    """
    value = row.values.get(column)
    if isinstance(value, int):
        return str(value).lower() if isinstance(value, bool) else str(value)
    if not isinstance(value, str) or not value.strip():
        raise BadValue(f"{column}: got {shown_value(value)}, expected a label: a word or a whole number")
    return value.strip()


def shown_value(value: object) -> str:
    """A value in a message, cut to one short line; what a recipe calls a section is an object in JSON.

    >>> shown_value({"label": 1}), shown_value("yes")
    ('an object', "the text 'yes'")
    """
    return "an object" if isinstance(value, dict) else shown(value)


@dataclass
class _Group:
    """The bad rows of one table, or the bad files of one folder."""

    noun: str
    count: int = 0
    first: list[str] = field(default_factory=list)


class BadRows:
    """What becomes of a row that breaks a rule: it ends the reading, or it is left out, counted and listed.

    An object serves one reading of the data; a second reading with it would count the same rows again.

    Args:
        policy: `fail` raises on the first one, `skip` goes on without it.

    >>> bad_rows = BadRows("skip")
    >>> row = Row(Path("train.csv"), 7, {"score": "high"})
    >>> with bad_rows.guard(row):
    ...     print(number_value(row, "score"))
    >>> print(*bad_rows.listed)
    train.csv:7: score: got the text 'high', expected a finite number such as 3.75
    """

    def __init__(self, policy: Policy = "fail") -> None:
        self.policy = policy
        self.count = 0
        self.listed: list[str] = []
        self._groups: dict[Path, _Group] = {}

    @contextmanager
    def guard(self, row: Row) -> Iterator[None]:
        """Reports a `BadValue` that is raised inside; what follows it inside is then not run.

        Args:
            row: The row that is being looked at.

        Raises:
            UserError: The policy is `fail` and the row breaks a rule.
        """
        try:
            yield
        except BadValue as error:
            self.report(row.path, row.number, str(error))

    def report(self, path: Path, number: int | None, message: str) -> None:
        """Applies the policy to one bad row, or to one bad file of a folder.

        Args:
            path: The table, or the file.
            number: Line or row as in `Row.number`; None for a file that is an example as a whole.
            message: What is wrong, without a full stop.

        Raises:
            UserError: The policy is `fail`.
        """
        place = str(path) if number is None else f"{path}:{number}"
        noun = "file" if number is None else "row"
        if self.policy == "fail":
            raise UserError(
                f"{place}: {message}. Repair the {noun}, or set data.on_bad_row: skip to leave such {noun}s out."
            )
        self.count += 1
        if len(self.listed) < LISTED:
            self.listed.append(f"{place}: {message}")
        group = self._groups.setdefault(path.parent if number is None else path, _Group(noun))
        group.count += 1
        if len(group.first) < QUOTED:
            unit = "row" if path.suffix.lower() == ".parquet" else "line"
            group.first.append(f"{path.name}: {message}" if number is None else f"{unit} {number}: {message}")

    def skipped(self, path: Path) -> int:
        """How many rows of a table, or files of a folder, were left out."""
        return self._groups[path].count if path in self._groups else 0

    def sentences(self) -> list[str]:
        """What was left out, one sentence for each table or folder, with the first few by name.

        >>> bad_rows = BadRows("skip")
        >>> bad_rows.report(Path("train.csv"), 7, "got 5 fields, expected 3")
        >>> bad_rows.sentences()
        ['1 row of train.csv was skipped (data.on_bad_row: skip): line 7: got 5 fields, expected 3.']
        """
        return [self.sentence(path) for path in self._groups]

    def sentence(self, path: Path) -> str:
        """What was left out of one table or folder, of which something was."""
        group = self._groups[path]
        more = [f"and {group.count - QUOTED} more"] if group.count > QUOTED else []
        what = f"1 {group.noun} of {path} was" if group.count == 1 else f"{group.count} {group.noun}s of {path} were"
        return f"{what} skipped (data.on_bad_row: skip): {'; '.join([*group.first, *more])}."
