"""Rows of CSV and TSV text: fields between delimiters, with or without double quotes around them."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Literal

from rdrop.errors import UserError
from rdrop.toolkit.data.rows import BadValue
from rdrop.toolkit.data.text_lines import MAX_LINE

Quoting = Literal["auto", "none", "double"]
Fields = tuple[int, list[str] | BadValue]  # the line in which a row begins, and its fields or what is wrong with it

DELIMITERS = {".csv": ",", ".tsv": "\t", ".txt": ""}  # a .txt file may have any
MAX_ROW_LINES = 10_000  # a quoted row of more lines is a quote that was never closed
SWALLOWED_LINES = 4  # a quoted field of so many lines that each look like a row is taken for a quote not closed
HEAD = 100  # rows that are looked at before the first is handed out

LONE_RETURN = "a carriage return stands alone outside of quotes; end lines with a line feed"
STRAY_QUOTE = (
    "text follows a closing quote; quote the whole field and write a quote inside it twice, or set data.quoting: none "
    "if quotes are part of the text"
)


@dataclass(frozen=True)
class DelimitedFormat:
    """How the rows of a CSV, TSV or TXT file are written."""

    delimiter: str
    quoted: bool
    """Double quotes around a field belong to the format."""
    guessed: bool
    """The recipe does not say so, and rows that look otherwise are faults."""


def delimited_format(path: Path, suffix: str, delimiter: str | None, quoting: Quoting) -> DelimitedFormat:
    r"""The format of a file, from the end of its name and from what the recipe says.

    Args:
        path: The file, for messages.
        suffix: One of `DELIMITERS`.
        delimiter: As in `rdrop.toolkit.data.tables.read_table`.
        quoting: As there.

    Returns:
        The format.

    Raises:
        UserError: The delimiter is missing or is not one usable character.

    >>> delimited_format(Path("train.tsv"), ".tsv", None, "auto")
    DelimitedFormat(delimiter='\t', quoted=False, guessed=True)
    """
    usual = DELIMITERS[suffix] if delimiter is None else delimiter
    if delimiter is None and not usual:
        raise UserError(
            f"{path}: the fields of a {suffix} file may be separated by any character; name it in data.delimiter, for "
            r'example "\t" or ","'
        )
    if len(usual) != 1 or usual in '"\r\n\0':
        raise UserError(
            f"data.delimiter: got {usual!r}, expected one character, for example ';', or in double quotes "
            r'"\t" for a tab'
        )
    quoted = quoting == "double" or (quoting == "auto" and suffix == ".csv")
    return DelimitedFormat(usual, quoted, guessed=quoting == "auto")


def delimited_rows(path: Path, lines: Iterable[str], form: DelimitedFormat) -> tuple[list[str], Iterator[Fields]]:
    r"""The names of the columns and, row by row, the fields under them.

    Args:
        path: The file, for messages.
        lines: Its lines with their line feeds.
        form: How its rows are written.

    Returns:
        The header, and the rows below it: of each the number of its first line, the header being line 1, and
        as many fields as the header has, or what is wrong with it. Lines without a character are left out.

    Raises:
        UserError: The fault is one of the file: a header that cannot be read, a quote that is never closed,
            quotes where the format was taken to have none.

    >>> form = DelimitedFormat(",", quoted=True, guessed=True)
    >>> header, rows = delimited_rows(Path("train.csv"), ["text,label\n", '"Good,\n', 'very good",1\n'], form)
    >>> header, list(rows)
    (['text', 'label'], [(2, ['Good,\nvery good', '1'])])
    """
    read = _quoted(path, iter(lines), form) if form.quoted else _plain(iter(lines), form)
    first = next(read, None)
    if first is None:
        raise UserError(f"{path} is empty; expected a line with the names of the columns and rows below it")
    number, raw, header = first
    fault = header if isinstance(header, BadValue) else _unreadable(raw)
    if isinstance(header, BadValue) or fault:
        raise UserError(f"{path}:{number}: the header cannot be read: {fault}")
    rows = ((number, _checked(number, raw, fields, len(header), form)) for number, raw, fields in read)
    return header, _without_quotes(path, header, rows) if form.guessed and not form.quoted else rows


Raw = tuple[int, list[str], list[str] | BadValue]  # the first line's number, the lines, and what was read in them


def _plain(lines: Iterator[str], form: DelimitedFormat) -> Iterator[Raw]:
    """Rows of one line each, in which a quote is a character like any other."""
    for number, line in enumerate(lines, 1):
        text = line.removesuffix("\n").removesuffix("\r")
        if text:
            yield number, [line], text.split(form.delimiter)


def _quoted(path: Path, lines: Iterator[str], form: DelimitedFormat) -> Iterator[Raw]:
    """Rows in which a quoted field may hold delimiters, line feeds, and quotes written twice."""
    # The limit of the reader is one for the whole process, and low for a document; what bounds a row is below.
    csv.field_size_limit(max(csv.field_size_limit(), 2 * MAX_LINE))
    first = 1
    raw: list[str] = []
    ended = False

    def feed() -> Iterator[str]:
        nonlocal ended
        size = 0
        for line in lines:
            size = len(line) + (size if raw else 0)
            raw.append(line)
            if len(raw) > MAX_ROW_LINES or size > MAX_LINE:
                raise UserError(_unclosed(path, first, raw))
            yield line
        ended = True

    reader = csv.reader(feed(), delimiter=form.delimiter, strict=True)
    while True:
        first, raw = reader.line_num + 1, []
        try:
            fields: list[str] | BadValue = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            if ended:
                raise UserError(_unclosed(path, first, raw)) from None
            fields = BadValue(_span(first, raw) + (LONE_RETURN if "new-line" in str(error) else STRAY_QUOTE))
        if fields:
            yield first, raw, fields


def _unclosed(path: Path, first: int, raw: list[str]) -> str:
    """The message about a quote that swallows the lines after it."""
    # Quotes written twice taken away, the last one left is the one that opened the field.
    before, _, _ = "".join(raw).replace('""', "").rpartition('"')
    return (
        f"{path}:{first + before.count(chr(10))}: a quoted field begins here and is not closed up to line "
        f"{first + len(raw) - 1}; close it, or set data.quoting: none if quotes are part of the text"
    )


def _checked(
    first: int, raw: list[str], fields: list[str] | BadValue, width: int, form: DelimitedFormat
) -> list[str] | BadValue:
    """The fields of a row, or what is wrong with it."""
    if isinstance(fields, BadValue):
        return fields
    if fault := _unreadable(raw):
        return BadValue(fault)
    if len(fields) != width:
        got = f"got {len(fields)} field{'s' if len(fields) != 1 else ''}, expected {width} as in the header"
        return BadValue(_span(first, raw) + got + _ragged_hint(raw, len(fields) > width, form))
    if form.quoted and form.guessed and _swallowed(raw, width, form.delimiter):
        return BadValue(
            f"{_span(first, raw)}one quoted field holds lines that each look like a row; write a quote inside a text "
            "twice, or set data.quoting: double if the field is right, none if quotes are part of the text"
        )
    return fields


def _unreadable(raw: list[str]) -> str | None:
    """What no text has in it."""
    if any("\0" in line for line in raw):
        return "there is a NUL character, which no text has; if the file is UTF-16, set data.encoding: utf-16"
    return None


def _ragged_hint(raw: list[str], more: bool, form: DelimitedFormat) -> str:
    """What could have made a row too long or too short."""
    if not form.quoted and any('"' in line for line in raw):
        return "; set data.quoting: double if the quotes group fields"
    if form.quoted and more:
        return f"; put double quotes around a field that contains {form.delimiter!r}"
    return ""


def _swallowed(raw: list[str], width: int, delimiter: str) -> bool:
    """Whether a quote that was never closed met another one far below: each line is by itself a whole row."""
    rows = [line.split(delimiter) for line in raw] if len(raw) >= SWALLOWED_LINES and width > 1 else []
    return bool(rows) and all(len(cells) == width and all(cell.strip() for cell in cells) for cells in rows)


def _without_quotes(path: Path, header: list[str], rows: Iterator[Fields]) -> Iterator[Fields]:
    """Refuses a file that was taken to have no quoting and was written with it."""
    remedy = "set data.quoting: double if quotes group fields in this file, none if they are part of the text"
    head = list(islice(rows, HEAD))
    sound = [fields for _, fields in head if not isinstance(fields, BadValue)]
    for name, *column in zip(header, *sound, strict=True) if sound else ():
        if all(_inner(value) is not None for value in column):
            raise UserError(f"{path}: every value of the column {name!r:.60} stands in double quotes; {remedy}")
    for number, fields in chain(head, rows):
        if not isinstance(fields, BadValue):
            for name, value in zip(header, fields, strict=True):
                if '""' in (_inner(value) or ""):
                    raise UserError(
                        f"{path}:{number}: {name!r:.60} stands in double quotes and has quotes written twice; {remedy}"
                    )
        yield number, fields


def _inner(value: str) -> str | None:
    """What a quoting writer put between the quotes, or None if it wrote no quotes."""
    if len(value) < 2 or value[0] != '"' or value[-1] != '"':
        return None
    inner = value[1:-1]
    return None if '"' in inner.replace('""', "") else inner


def _span(first: int, raw: list[str]) -> str:
    """The lines of a row that has several."""
    return f"lines {first} to {first + len(raw) - 1}: " if len(raw) > 1 else ""
