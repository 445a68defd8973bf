"""Running text in the user's files: documents, as a stream of pieces that are small enough for any memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from pydantic import Field

from rdrop.errors import UserError
from rdrop.toolkit.data.file_data import TableData
from rdrop.toolkit.data.files import inside
from rdrop.toolkit.data.rows import BadRows, BadValue, text_value
from rdrop.toolkit.data.tables import read_table
from rdrop.toolkit.data.text_lines import text_lines

DocumentRule = Literal["file", "line", "blank-line", "wikitext"]

TABLES = (".csv", ".tsv", ".jsonl", ".ndjson", ".parquet")
IN_FOLDERS = (".txt", ".txt.gz")
PIECE = 2**16  # characters, before the end of the line that reaches them


class TextData(TableData):
    """What to train and test on."""

    train: str = Field(
        default="train.txt",
        description="Training split: a text file, also gzipped (.gz), a folder of such files (.txt, .txt.gz), or a "
        "table with a text in each row.",
    )
    text_column: str = Field(default="text", description="Column of a table that holds the text.")
    documents: DocumentRule = Field(
        default="file",
        description="What a document is in a text file: `file`, all of it; `line`, each line that is not blank; "
        "`blank-line`, what stands between blank lines; `wikitext`, what begins with a heading ` = Title = `.",
    )


class Piece(NamedTuple):
    """A part of a document, in the order of the text; joined, its parts are the document."""

    text: str
    ends: bool
    """Whether the document ends here."""


def read_documents(path: Path, data: TextData, bad_rows: BadRows) -> Iterator[Piece]:
    r"""The documents of a text file, of a table, or of the text files in a folder and below it, ordered by name.

    A table (`.csv`, `.tsv`, `.jsonl`, `.ndjson`, each also with `.gz` after it, or `.parquet`) has a document in each
    row. Any other file is text; in a folder those are read that end in `.txt` or `.txt.gz`. In a text, `data.documents`
    says what a document is; with `line` it has no line end, with `blank-line` no blank lines. White space alone is
    no document.

    Args:
        path: File or folder.
        data: How it is to be read.
        bad_rows: What becomes of a row, or a file of a folder, that has no text.

    Yields:
        The pieces of the documents, read as they are asked for.

    Raises:
        UserError: A file cannot be read, or there is no text at all. It is raised where the reading comes to it.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     file = Path(folder) / "two.txt"
    ...     _ = file.write_text("To be,\nor not.\n\n\nThat is\n")
    ...     list(read_documents(file, TextData(documents="blank-line"), BadRows()))
    [Piece(text='To be,\nor not.\n', ends=True), Piece(text='That is\n', ends=True)]
    """
    if path.is_dir():
        yield from _of_folder(path, data, bad_rows)
    elif Path(path.name.lower().removesuffix(".gz")).suffix in TABLES:
        yield from _of_table(path, data, bad_rows)
    else:
        pieces = _of_file(path, data)
        first = next(pieces, None)
        if first is None:
            raise UserError(f"{path} has no text in it; expected at least one word")
        yield first
        yield from pieces


def _of_folder(folder: Path, data: TextData, bad_rows: BadRows) -> Iterator[Piece]:
    """The documents of all text files in a folder and below it."""
    files = sorted(path for path in folder.rglob("*") if path.name.lower().endswith(IN_FOLDERS) and path.is_file())
    if not files:
        raise UserError(f"{folder} holds no file that ends in {' or '.join(IN_FOLDERS)}; expected at least one")
    used = False
    for file in files:
        try:
            inside(folder, str(file.absolute()))
            pieces = _of_file(file, data)
            first = next(pieces, None)
            if first is None:
                raise BadValue("there is no text in it, expected at least one word")
        except BadValue as error:
            bad_rows.report(file, None, str(error))
            continue
        used = True
        yield first
        yield from pieces
    if not used:
        raise UserError(f"nothing is left of {folder}: {' '.join(bad_rows.sentences())}")


def _of_table(path: Path, data: TextData, bad_rows: BadRows) -> Iterator[Piece]:
    """The texts of a column."""
    rows = read_table(
        path,
        [data.text_column],
        **data.form,
        bad_rows=bad_rows,
    )
    for row in rows:
        text = ""
        with bad_rows.guard(row):
            text = text_value(row, data.text_column)
        yield from _documents(text.splitlines(keepends=True), "file")  # nothing, where the row was left out


def _of_file(path: Path, data: TextData) -> Iterator[Piece]:
    return _documents(text_lines(path, data.encoding), data.documents)


def _documents(lines: Iterable[str], rule: DocumentRule) -> Iterator[Piece]:
    """The documents in the lines of a text, in pieces."""
    held: list[str] = []  # lines of the current document that are not handed out yet
    size, begun = 0, False  # their characters; whether there is more than white space in the document so far
    for line in lines:
        blank = not line.strip()
        boundary = {"file": False, "line": True, "blank-line": blank, "wikitext": _is_heading(line)}[rule]
        if boundary and begun:
            yield Piece("".join(held), ends=True)
            held, size, begun = [], 0, False
        if blank and rule in ("line", "blank-line"):
            continue
        held.append(line.rstrip("\r\n") if rule == "line" else line)
        size += len(line)
        begun = begun or not blank
        if size >= PIECE and begun:
            yield Piece("".join(held), ends=False)
            held, size = [], 0
    if begun:
        yield Piece("".join(held), ends=True)


def _is_heading(line: str) -> bool:
    """Whether a line is a heading of the first level as WikiText writes it: ` = Title = `."""
    text = line.strip()
    return text.startswith("= ") and text.endswith(" =") and not text.startswith("= =")


def hold_out_tail(pieces: Sequence[Piece], fraction: float, name: str) -> tuple[list[Piece], list[Piece]]:
    r"""The pieces without the last part of their text, and that part; the cut is made at the end of a line if possible.

    Nothing is drawn: sentences that stand side by side share so much that a random part would be no test.

    Args:
        pieces: A whole text.
        fraction: Share of the characters to hold out, 0 < fraction < 1.
        name: The text, for messages.

    Raises:
        UserError: The text is too short to hold any of it out.

    >>> hold_out_tail([Piece("one\ntwo\nthree\n", True)], 0.3, "train.txt")
    ([Piece(text='one\ntwo\n', ends=True)], [Piece(text='three\n', ends=True)])
    """
    total = sum(len(piece.text) for piece in pieces)
    wanted = total - round(fraction * total)
    kept_characters = index = 0
    while index < len(pieces) - 1 and kept_characters + len(pieces[index].text) <= wanted:
        kept_characters += len(pieces[index].text)
        index += 1
    text, cut = pieces[index].text, wanted - kept_characters
    if line_end := text.rfind("\n", 0, cut) + 1:
        cut = line_end
    elif index > 0:  # a piece begins where a line begins
        cut = 0
    kept = [*pieces[:index], *([Piece(text[:cut], ends=True)] if cut else [])]
    held_out = [*([Piece(text[cut:], pieces[index].ends)] if text[cut:] else []), *pieces[index + 1 :]]
    if not _has_text(kept) or not _has_text(held_out):
        raise UserError(
            f"{name}: of {total:,} characters, data.validation_fraction {fraction:g} leaves no text on one side; add "
            "text, set another fraction, or name a file in data.validation"
        )
    return [*kept[:-1], kept[-1]._replace(ends=True)], held_out


def _has_text(pieces: Iterable[Piece]) -> bool:
    return any(piece.text.strip() for piece in pieces)
