"""Sentences as lists of words with a tag for each: JSON lines, Parquet, two-column text."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from rdrop.errors import UserError
from rdrop.toolkit.data.rows import BadRows, BadValue, Row, label_value, shown_value, text_value
from rdrop.toolkit.data.tables import JSON_LINES, read_table
from rdrop.toolkit.data.text_lines import text_lines

COLUMN_FILES = (".conll", ".bio", ".iob")
DOCUMENT = "-DOCSTART-"  # the word of a line that begins a document


def sentence_rows(path: Path, words: str, tags: str | None, encoding: str, bad_rows: BadRows) -> Iterator[Row]:
    r"""The sentences of a file, each a row with a list of words and, if asked for, one of tags.

    Args:
        path: A `.jsonl`, `.ndjson`, `.conll`, `.bio` or `.iob` file, each also with `.gz` after it, or a `.parquet`
            file. In `.conll`, `.bio` and `.iob` each line is a word, with its tag as the last field, and an empty line
            ends a sentence.
        words: Name of the column of words.
        tags: Name of the column of tags; None: only the words are wanted.
        encoding: Encoding of a text file.
        bad_rows: What becomes of a row that cannot be read.

    Raises:
        UserError: The file cannot be used.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder) / "train.conll"
    ...     _ = path.write_text("In O\nParis B-LOC\n\nYes O\n")
    ...     [row.values for row in sentence_rows(path, "tokens", "tags", "utf-8", BadRows())]
    [{'tokens': ['In', 'Paris'], 'tags': ['O', 'B-LOC']}, {'tokens': ['Yes'], 'tags': ['O']}]
    """
    suffix = Path(path.name.lower().removesuffix(".gz")).suffix
    if suffix in COLUMN_FILES:
        return _two_columns(path, words, tags, encoding, bad_rows)
    if path.is_dir():
        raise UserError(f"{path} is a folder; expected a file of tagged sentences")
    if suffix not in (*JSON_LINES, ".parquet"):
        raise UserError(
            f"{path}: a {suffix or 'nameless'} file does not hold lists of words; expected {', '.join(JSON_LINES)}, "
            f"{', '.join(COLUMN_FILES)} (each also with .gz after it) or .parquet"
        )
    return read_table(path, [words] if tags is None else [words, tags], encoding=encoding, bad_rows=bad_rows)


def words_value(row: Row, column: str) -> list[str]:
    """The words of a sentence.

    Args:
        row: The row.
        column: Its column of words.

    Raises:
        BadValue: It is no list of words, or an empty one.

    >>> words_value(Row(Path("train.jsonl"), 1, {"tokens": ["In", "Paris"]}), "tokens")
    ['In', 'Paris']
    """
    return _items(row, column, text_value, "words")


def tags_value(row: Row, column: str, words: Sequence[str]) -> list[str]:
    """The tags of a sentence, as names or as numbers.

    Args:
        row: The row.
        column: Its column of tags.
        words: Its words.

    Raises:
        BadValue: There is not one tag for each word.

    >>> tags_value(Row(Path("train.jsonl"), 1, {"tags": ["O"]}), "tags", ["In", "Paris"])
    Traceback (most recent call last):
        ...
    rdrop.toolkit.data.rows.BadValue: tags: got 1 tag for 2 words, expected one for each
    """
    tags = _items(row, column, label_value, "tags")
    if len(tags) != len(words):
        raise BadValue(
            f"{column}: got {len(tags)} tag{'s' if len(tags) > 1 else ''} for {len(words)} "
            f"word{'s' if len(words) > 1 else ''}, expected one for each"
        )
    return tags


def _items(row: Row, column: str, read: Callable[[Row, str], str], noun: str) -> list[str]:
    """The entries of a list, each read as a value of its own, so that a message names its place."""
    value = row.values.get(column)
    if not isinstance(value, list) or not value:
        raise BadValue(f"{column}: got {shown_value(value)}, expected a list of {noun} with at least one")
    entries = {f"{column}[{index}]": item for index, item in enumerate(value)}
    return [read(Row(row.path, row.number, entries), entry) for entry in entries]


def _two_columns(path: Path, words: str, tags: str | None, encoding: str, bad_rows: BadRows) -> Iterator[Row]:
    """Sentences of which each line is a word and its tag."""
    count, skipped_before = 0, bad_rows.skipped(path)
    for lines in _paragraphs(path, encoding):
        count += 1
        fields = [(number, line.split("\t") if "\t" in line else line.split()) for number, line in lines]
        row = Row(path, lines[0][0], {words: [parts[0] for _, parts in fields]})
        with bad_rows.guard(row):
            if tags is not None:
                alone = next((number for number, parts in fields if len(parts) < 2), None)
                if alone is not None:
                    raise BadValue(
                        f"line {alone} has a single field, expected a word and its tag, with a space between"
                    )
                row.values[tags] = [parts[-1] for _, parts in fields]
            yield row
    if not count:
        raise UserError(f"{path} has no sentences; expected at least one")
    if bad_rows.skipped(path) - skipped_before == count:
        raise UserError(f"no sentence of {path} can be used: {bad_rows.sentence(path)}")


def _paragraphs(path: Path, encoding: str) -> Iterator[list[tuple[int, str]]]:
    """Lines with their numbers up to the next empty one; the lines that begin a document are left out."""
    lines: list[tuple[int, str]] = []
    for number, line in enumerate(text_lines(path, encoding), 1):
        if line.strip() and not line.startswith(DOCUMENT):
            lines.append((number, line.rstrip("\r\n")))
        elif lines:
            yield lines
            lines = []
    if lines:
        yield lines
