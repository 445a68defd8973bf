"""The user's tables, row by row: CSV, TSV, JSON lines and Parquet, in constant memory.

A fault of a file (it is missing, cut short, in another encoding, without a column) ends the reading at once. A
fault of a row (too many fields, no JSON, a value that cannot be) is left to the policy `data.on_bad_row`.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from rdrop.errors import UserError
from rdrop.toolkit.data.delimited import DELIMITERS, DelimitedFormat, Quoting, delimited_format, delimited_rows
from rdrop.toolkit.data.files import opened
from rdrop.toolkit.data.rows import BadRows, BadValue, Row
from rdrop.toolkit.data.text_lines import text_lines
from rdrop.toolkit.plain_yaml import shown
from rdrop.toolkit.recipe_fields import nearest

JSON_LINES = (".jsonl", ".ndjson")
KNOWN = f"{', '.join([*DELIMITERS, *JSON_LINES])} (each also with .gz after it) or .parquet"
COMPARED = 1000  # names among which a mistaken one is looked for; a damaged header may have millions
PARQUET_BATCH = 128  # rows in memory; each may hold an image
PARQUET_BUFFER = 2**20  # bytes read ahead in each column

Values = dict[str, Any]
Found = tuple[int, Values | BadValue]  # the number of a row, and its values or what is wrong with it


def read_table(
    path: Path,
    columns: Sequence[str],
    *,
    optional_columns: Sequence[str] = (),
    delimiter: str | None = None,
    quoting: Quoting = "auto",
    encoding: str = "utf-8",
    bad_rows: BadRows,
) -> Iterator[Row]:
    r"""Reads a table row by row.

    The end of the name decides what is read: `.csv`, `.tsv`, `.txt` (with `delimiter`), `.jsonl` or `.ndjson`,
    each also with `.gz` after it, and `.parquet`. CSV, TSV and TXT begin with a header; a line without a
    character in it is no row, wherever it stands.

    Args:
        path: The file.
        columns: Columns that every row must have. Others are not kept.
        optional_columns: Columns that a row has in its values where the table has them.
        delimiter: The character between two fields of CSV, TSV and TXT; None: the comma in CSV, the tab in TSV.
        quoting: Whether double quotes around a field of CSV, TSV and TXT belong to the format (`double`, with
            `""` for a quote inside) or to the text (`none`). `auto` is `double` for CSV and `none` for TSV and
            TXT, and refuses rows that look like the other one.
        encoding: Encoding of a text file, as Python names it.
        bad_rows: What becomes of a row that breaks a rule.

    Yields:
        The rows that are not left out.

    Raises:
        UserError: The file cannot be read, has no such column or not one row that can be used, or a row breaks
            a rule and the policy is `fail`. It is raised where the reading comes to it, not by the call.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder) / "train.tsv"
    ...     _ = path.write_text("text\tlabel\nGood.\t1\nBad.\n\nNot bad.\t1\n")
    ...     bad_rows = BadRows("skip")
    ...     for row in read_table(path, ["text", "label"], bad_rows=bad_rows):
    ...         print(row.number, row.values)
    ...     print(bad_rows.listed[0].removeprefix(f"{folder}/"))
    2 {'text': 'Good.', 'label': '1'}
    5 {'text': 'Not bad.', 'label': '1'}
    train.tsv:3: got 1 field, expected 2 as in the header
    """
    wanted = _Wanted(path, tuple(columns), tuple(optional_columns))
    suffix = table_suffix(path)
    found: Iterator[Found]
    if suffix in DELIMITERS:
        form = delimited_format(path, suffix, delimiter, quoting)
        found = _delimited(wanted, form, encoding)
    elif suffix in JSON_LINES:
        found = _json_lines(wanted, encoding)
    else:
        found = _parquet(wanted)
    rows, skipped_before = 0, bad_rows.skipped(path)
    for number, values in found:
        rows += 1
        if isinstance(values, BadValue):
            bad_rows.report(path, number, str(values))
        else:
            yield Row(path, number, values)
    if not rows:
        raise UserError(f"{path} has no rows; expected at least one")
    # The rows that the caller reported are among them: it has done so by the time it asks for the next one.
    if bad_rows.skipped(path) - skipped_before == rows:
        raise UserError(f"no row of {path} can be used: {bad_rows.sentence(path)}")


def table_suffix(path: Path) -> str:
    """The end of a table's name that says what it is, without the .gz after it.

    Args:
        path: The table.

    Raises:
        UserError: It says nothing, or the path is that of a folder.

    >>> table_suffix(Path("train.CSV.gz"))
    '.csv'
    """
    suffix = Path(path.name.lower().removesuffix(".gz")).suffix
    if suffix in (*DELIMITERS, *JSON_LINES) or path.suffix.lower() == ".parquet":
        return suffix
    if path.is_dir():
        raise UserError(f"{path} is a folder; expected a table: {KNOWN}")
    raise UserError(f"{path}: the end of the name does not say what kind of table it is; expected {KNOWN}")


def table_columns(
    path: Path, *, delimiter: str | None = None, quoting: Quoting = "auto", encoding: str = "utf-8"
) -> list[str]:
    r"""The names of a table's columns, in their order; of JSON lines those of the first object.

    Args:
        path: The table.
        delimiter: As in `read_table`, as are the following.
        quoting: As there.
        encoding: As there.

    Raises:
        UserError: The file cannot be read.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder) / "train.tsv"
    ...     _ = path.write_text("text\tlabel\nGood.\t1\n")
    ...     table_columns(path)
    ['text', 'label']
    """
    suffix = table_suffix(path)
    if suffix in DELIMITERS:
        form = delimited_format(path, suffix, delimiter, quoting)
        return delimited_rows(path, text_lines(path, encoding), form)[0]
    if suffix in JSON_LINES:
        objects = (json.loads(line) for line in text_lines(path, encoding) if line.strip())
        try:
            first = next(objects, None)
        except (ValueError, RecursionError):
            first = None
        return list(first) if isinstance(first, dict) else []
    from pyarrow.parquet import ParquetFile  # slow to import, and not all need it

    with opened(path) as file:
        try:
            return list(ParquetFile(file).schema_arrow.names)
        except Exception as error:  # as below
            raise UserError(f"{path} cannot be read as Parquet: {str(error).partition(chr(10))[0]:.200}") from error


@dataclass(frozen=True)
class _Wanted:
    """What is to be read."""

    path: Path
    columns: tuple[str, ...]
    optional: tuple[str, ...]

    @property
    def all(self) -> dict[str, bool]:
        """Every column, and whether it must be there."""
        return dict.fromkeys(self.optional, False) | dict.fromkeys(self.columns, True)

    def positions(self, present: Sequence[str], hint: str = "") -> dict[str, int]:
        """Where the columns stand among those of the table.

        Raises:
            UserError: One is missing, or is there twice.
        """
        for column in self.all:
            if self.all[column] and column not in present:
                raise UserError(f"{self.path}: {_absent(column, present, hint)}")
            if present.count(column) > 1:
                raise UserError(
                    f"{self.path}: {present.count(column)} columns are named {column!r}; give all but one another name"
                )
        return {column: present.index(column) for column in self.all if column in present}


def _absent(column: str, present: Sequence[str], hint: str) -> str:
    """The message about a column that a table, or an object, lacks."""
    close = nearest(column, present[:COMPARED])
    names = ", ".join(f"{name!r:.40}" for name in present[:10]) or "none"
    more = ", ..." if len(present) > 10 else ""
    return f"there is no column {column!r}, only {names}{more}" + (hint or f"; did you mean {close!r}?" * bool(close))


def _delimited(wanted: _Wanted, form: DelimitedFormat, encoding: str) -> Iterator[Found]:
    """Rows of CSV, TSV and TXT."""
    header, rows = delimited_rows(wanted.path, text_lines(wanted.path, encoding), form)
    positions = wanted.positions(header, _header_hint(header, form.delimiter))
    for number, fields in rows:
        if isinstance(fields, BadValue):
            yield number, fields
        else:
            yield number, {column: fields[position] for column, position in positions.items()}


def _header_hint(header: list[str], delimiter: str) -> str:
    """Why the names in a header may not be those that are meant."""
    counts = {other: header[0].count(other) for other in ",;\t|" if other != delimiter}
    likely = max(counts, key=counts.__getitem__)
    if len(header) == 1 and counts[likely]:
        return f"; the delimiter looks like {likely!r}: set data.delimiter to it"
    if all(len(name) > 1 and name[0] == name[-1] == '"' for name in header):
        return "; the names stand in double quotes: set data.quoting: double"
    if any("\r" in name for name in header):
        return "; the lines seem to end with carriage returns alone: save the file with line feeds"
    return ""


def _json_lines(wanted: _Wanted, encoding: str) -> Iterator[Found]:
    """Rows of JSON lines: one object a line."""
    for number, line in enumerate(text_lines(wanted.path, encoding), 1):
        if line.strip(" \t\r\n"):
            try:
                yield number, _json_row(wanted, line)
            except BadValue as error:
                yield number, error


def _json_row(wanted: _Wanted, line: str) -> Values:
    """The wanted values of one object."""
    try:
        row = json.loads(line, object_pairs_hook=_distinct, parse_constant=_no_number)
        if "\\u" in line:
            # Half of a pair of escapes makes a text that no file, and no tokenizer, accepts.
            json.dumps(row, ensure_ascii=False).encode()
    except BadValue:
        raise
    except json.JSONDecodeError as error:
        hint = "; a .jsonl file has one whole object in each line" if line.lstrip()[:1] in "[{" else ""
        raise BadValue(f"this is not JSON, {error.msg} at column {error.colno}{hint}") from None
    except UnicodeEncodeError:
        raise BadValue(
            r"a text has half a character in it, an escape \ud800 to \udfff without its other half"
        ) from None
    except (ValueError, RecursionError) as error:  # a number of thousands of digits; lists in lists without end
        raise BadValue(f"this JSON cannot be read: {error}") from None
    if not isinstance(row, dict):
        raise BadValue(
            f"got {shown(row)}, expected an object such as {{{json.dumps((*wanted.columns, 'text')[0])}: ...}}"
        )
    for column in wanted.columns:
        if column not in row:
            raise BadValue(_absent(column, list(row), ""))
    return {column: row[column] for column in wanted.all if column in row}


def _distinct(pairs: list[tuple[str, Any]]) -> Values:
    """An object whose keys are all different."""
    made = dict(pairs)
    if len(made) < len(pairs):
        twice = next(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
        raise BadValue(f"the key {twice!r:.60} is there twice; keep one of the two")
    return made


def _no_number(name: str) -> NoReturn:
    """Refuses NaN and Infinity, which Python reads and JSON does not have."""
    raise BadValue(f"{name} is not a number of JSON; expected a finite number or null")


def _parquet(wanted: _Wanted) -> Iterator[Found]:
    """Rows of Parquet."""
    from pyarrow.parquet import ParquetFile  # slow to import, and not all need it

    number = 0
    with opened(wanted.path) as file:
        try:
            # Read ahead as a whole, a group of rows would be in memory at once, and it may be the file.
            table = ParquetFile(file, buffer_size=PARQUET_BUFFER, pre_buffer=False, page_checksum_verification=True)
            positions = wanted.positions(table.schema_arrow.names)
            # Threads of its own would not survive the fork of a data loader's workers.
            for batch in table.iter_batches(PARQUET_BATCH, columns=list(positions), use_threads=False):
                for values in batch.to_pylist():
                    number += 1
                    yield number, values
        except UserError:
            raise
        except Exception as error:  # whatever is in the file, the answer is a message about it
            place, reason = f" after row {number}" if number else "", str(error).partition("\n")[0]
            raise UserError(
                f"{wanted.path} cannot be read as Parquet{place}: {reason:.200}; write or copy it again"
            ) from error
