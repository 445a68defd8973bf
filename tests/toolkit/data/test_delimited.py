from __future__ import annotations

import csv
import io
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rdrop.errors import UserError
from rdrop.toolkit.data import delimited as module
from rdrop.toolkit.data.delimited import DELIMITERS, DelimitedFormat, Quoting, delimited_format, delimited_rows
from rdrop.toolkit.data.rows import BadValue

CSV = DelimitedFormat(",", quoted=True, guessed=True)
TSV = DelimitedFormat("\t", quoted=False, guessed=True)
REMEDY = "set data.quoting: double if quotes group fields in this file, none if they are part of the text"


def rows_of(text: str, form: DelimitedFormat, name: str = "train") -> list[tuple[int, list[str] | str]]:
    """Header and rows; the message in place of a row that has a fault."""
    header, rows = delimited_rows(Path(name), text.splitlines(keepends=True), form)
    return [(1, header), *((line, str(row) if isinstance(row, BadValue) else row) for line, row in rows)]


def refusal(text: str, form: DelimitedFormat) -> str:
    with pytest.raises(UserError) as caught:
        rows_of(text, form)
    return str(caught.value)


@pytest.mark.parametrize(
    ("suffix", "delimiter", "quoting", "expected"),
    [
        (".csv", None, "auto", DelimitedFormat(",", quoted=True, guessed=True)),
        (".csv", ";", "none", DelimitedFormat(";", quoted=False, guessed=False)),
        (".tsv", None, "auto", DelimitedFormat("\t", quoted=False, guessed=True)),
        (".tsv", None, "double", DelimitedFormat("\t", quoted=True, guessed=False)),
        (".txt", "|", "auto", DelimitedFormat("|", quoted=False, guessed=True)),
    ],
)
def test_the_end_of_the_name_and_the_recipe_decide(
    suffix: str, delimiter: str | None, quoting: Quoting, expected: DelimitedFormat
) -> None:
    assert delimited_format(Path("train"), suffix, delimiter, quoting) == expected


@pytest.mark.parametrize("delimiter", ["", ",,", '"', "\n", "\r", "\0", "\\t"])
def test_a_delimiter_is_one_character(delimiter: str) -> None:
    with pytest.raises(UserError) as caught:
        delimited_format(Path("train.csv"), ".csv", delimiter, "auto")
    assert str(caught.value) == (
        f"data.delimiter: got {delimiter!r}, expected one character, for example ';', or in double quotes "
        '"\\t" for a tab'
    )


def test_a_text_file_needs_a_delimiter() -> None:
    assert not DELIMITERS[".txt"]
    with pytest.raises(UserError) as caught:
        delimited_format(Path("train.txt"), ".txt", None, "auto")
    assert str(caught.value) == (
        "train.txt: the fields of a .txt file may be separated by any character; name it in data.delimiter, for "
        'example "\\t" or ","'
    )


def test_quoted_fields_hold_delimiters_lines_and_quotes() -> None:
    assert rows_of('text,label\r\n"Hi, you\r\n\r\nsaid ""Bo""",1\r\nit\'s 5" long,0', CSV) == [
        (1, ["text", "label"]),
        (2, ['Hi, you\r\n\r\nsaid "Bo"', "1"]),
        (5, ["it's 5\" long", "0"]),
    ]


def test_without_quoting_a_quote_is_a_character() -> None:
    assert rows_of('text\tlabel\n"Hi\t1\r\n"a" b"c"\t0\n', TSV) == [
        (1, ["text", "label"]),
        (2, ['"Hi', "1"]),
        (3, ['"a" b"c"', "0"]),
    ]


@pytest.mark.parametrize("form", [CSV, DelimitedFormat(",", quoted=False, guessed=True)])
def test_lines_without_a_character_are_no_rows(form: DelimitedFormat) -> None:
    expected = [(1, ["text", "label"]), (5, ["a", "1"]), (7, ["b", "2"])]
    assert rows_of("\ntext,label\n\r\n\na,1\n\nb,2\n\n\r\n", form) == expected


@pytest.mark.parametrize("form", [CSV, TSV])
@pytest.mark.parametrize("text", ["", "\n\r\n\n"])
def test_an_empty_file_has_no_header(form: DelimitedFormat, text: str) -> None:
    assert refusal(text, form) == "train is empty; expected a line with the names of the columns and rows below it"


def test_a_row_of_another_length_is_a_fault() -> None:
    assert rows_of('a,b\n1\n1,2,3\n"x\ny"\n1,2\n', CSV)[1:] == [
        (2, "got 1 field, expected 2 as in the header"),
        (3, "got 3 fields, expected 2 as in the header; put double quotes around a field that contains ','"),
        (4, "lines 4 to 5: got 1 field, expected 2 as in the header"),
        (6, ["1", "2"]),
    ]
    assert rows_of('a\tb\n1\n"x\t1"\ty\n', TSV)[1:] == [
        (2, "got 1 field, expected 2 as in the header"),
        (3, "got 3 fields, expected 2 as in the header; set data.quoting: double if the quotes group fields"),
    ]


@pytest.mark.parametrize("form", [CSV, DelimitedFormat(",", quoted=False, guessed=True)])
def test_a_nul_character_is_a_fault(form: DelimitedFormat) -> None:
    fault = "there is a NUL character, which no text has; if the file is UTF-16, set data.encoding: utf-16"
    assert rows_of("a,b\nx\0,1\ny,2\n", form)[1:] == [(2, fault), (3, ["y", "2"])]
    assert refusal("\0a,b\n", form) == f"train:1: the header cannot be read: {fault}"


@pytest.mark.parametrize("row", ['"Hi" she said,1', '"a" ,1', r'"a \"b\" c",1', '"Hi,0\nyes "no" yes,1'])
def test_text_after_a_closing_quote_is_a_fault(row: str) -> None:
    lines = "lines 2 to 3: " if "\n" in row else ""
    assert rows_of(f"a,b\n{row}\nx,2\n", CSV)[1:] == [
        (
            2,
            f"{lines}text follows a closing quote; quote the whole field and write a quote inside it twice, or set "
            "data.quoting: none if quotes are part of the text",
        ),
        (3 + row.count("\n"), ["x", "2"]),
    ]


def test_a_carriage_return_alone_ends_no_line() -> None:
    _, rows = delimited_rows(Path("train"), ["a,b\n", "x\ry,1\n", "z,2\n"], CSV)
    (line, fault), after = rows
    assert (line, str(fault)) == (2, "a carriage return stands alone outside of quotes; end lines with a line feed")
    assert after == (3, ["z", "2"])
    with pytest.raises(UserError, match="train:1: the header cannot be read: a carriage return stands alone"):
        delimited_rows(Path("train"), ["a,b\rx,1\r"], CSV)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ('a,b\nx,1\n"y,2\nz,3\n', 3),
        ('a,b\nx,1\n"y ""z"",2\nz,3', 3),
        ('a,b\nx,1\n"y\n""z",",2\n\n', 4),
        ('a,b\nx,"', 2),
        ('a,b\n"y,1\nshe said ""no""\n', 2),
        ('"a,b\nx,1\n', 1),
    ],
)
def test_a_quote_that_is_never_closed_is_named_with_its_line(text: str, line: int) -> None:
    last = len(text.splitlines())
    assert refusal(text, CSV) == (
        f"train:{line}: a quoted field begins here and is not closed up to line {last}; close it, or set data.quoting: "
        "none if quotes are part of the text"
    )


def test_a_quote_swallows_no_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_ROW_LINES", 50)
    endless = iter(["a,b\n", "x,1\n", '"y,2\n', *["z,3\n"] * 10**6])
    _, rows = delimited_rows(Path("train"), endless, CSV)
    assert next(rows) == (2, ["x", "1"])
    with pytest.raises(UserError, match="train:3: a quoted field begins here and is not closed up to line 53"):
        next(rows)
    assert len(list(endless)) > 10**6 - 100
    monkeypatch.setattr(module, "MAX_LINE", 100)
    _, rows = delimited_rows(Path("train"), ["a\n", '"\n', *["z" * 30 + "\n"] * 5], CSV)
    with pytest.raises(UserError, match="train:2: a quoted field begins here and is not closed up to line 6"):
        next(rows)
    _, rows = delimited_rows(Path("train"), ["a\n", *['"z"\n'] * 100], CSV)
    assert len(list(rows)) == 100  # the limit is one of a row


def test_a_quote_that_meets_another_one_below_is_a_fault_unless_the_recipe_says_otherwise() -> None:
    text = 'text,label\n"Hi,1\nyes,0\nno,1\nbye",0\nx,2\n'
    swallowed = ["Hi,1\nyes,0\nno,1\nbye", "0"]
    assert rows_of(text, CSV)[1:] == [
        (
            2,
            "lines 2 to 5: one quoted field holds lines that each look like a row; write a quote inside a text twice, "
            "or set data.quoting: double if the field is right, none if quotes are part of the text",
        ),
        (6, ["x", "2"]),
    ]
    trusted = DelimitedFormat(",", quoted=True, guessed=False)
    assert rows_of(text, trusted)[1:] == [(2, swallowed), (6, ["x", "2"])]


@pytest.mark.parametrize("field", ["Dear Bo,\nyes,\nno,\nbye", "a\nb\nc\nd\ne", "one, two\nthree\nfour, five\nsix"])
def test_a_text_of_several_lines_is_a_field(field: str) -> None:
    assert rows_of(f'text,label\n"{field}",1\n', CSV)[1:] == [(2, [field, "1"])]
    assert rows_of(f'text\n"{field}"\n', CSV)[1:] == [(2, [field])]


def test_a_document_of_any_length_is_a_field() -> None:
    document = "long, " * 100_000
    assert rows_of(f'text\n"{document}"\n', CSV)[1] == (2, [document])


def test_a_column_in_quotes_needs_a_decision() -> None:
    text = 'text\tlabel\n"a"\t1\n"b c"\t1\n""\t0\n'
    assert refusal(text, TSV) == f"train: every value of the column 'text' stands in double quotes; {REMEDY}"
    assert rows_of(text, DelimitedFormat("\t", quoted=False, guessed=False))[1] == (2, ['"a"', "1"])
    assert rows_of(text, DelimitedFormat("\t", quoted=True, guessed=False))[1] == (2, ["a", "1"])
    # One value without them, and quotes are part of the text.
    assert rows_of(text + "d\t1\n", TSV)[1] == (2, ['"a"', "1"])


def test_quotes_written_twice_need_a_decision() -> None:
    many = "a\t1\n" * 300
    text = f'text\tlabel\n{many}"She said ""no""."\t1\n'
    assert refusal(text, TSV) == (f"train:302: 'text' stands in double quotes and has quotes written twice; {REMEDY}")
    assert rows_of(text, DelimitedFormat("\t", quoted=False, guessed=False))[-1][1] == ['"She said ""no""."', "1"]
    assert rows_of(text, DelimitedFormat("\t", quoted=True, guessed=False))[-1][1] == ['She said "no".', "1"]


FIELD = st.text(st.sampled_from('ab ,;\t"\n\rä'), max_size=6)


@settings(max_examples=200, deadline=None)
@given(
    rows=st.integers(1, 4).flatmap(
        lambda width: st.lists(st.lists(FIELD, min_size=width, max_size=width), min_size=1, max_size=6)
    ),
    delimiter=st.sampled_from(",;\t"),
    quoting=st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL, csv.QUOTE_NONNUMERIC]),
)
def test_what_another_writer_quoted_is_read_back(rows: list[list[str]], delimiter: str, quoting: int) -> None:
    file = io.StringIO(newline="")
    csv.writer(file, delimiter=delimiter, quoting=quoting).writerows(rows)  # type: ignore[arg-type]  # one of three
    lines = re.findall("[^\n]*\n", file.getvalue())
    form = DelimitedFormat(delimiter, quoted=True, guessed=False)
    header, read = delimited_rows(Path("train"), lines, form)
    assert [header, *(fields for _, fields in read)] == rows


@settings(max_examples=100, deadline=None)
@given(rows=st.lists(st.tuples(*[st.text('ab ,;"\u2028ä', min_size=1, max_size=6)] * 2), min_size=1, max_size=6))
def test_what_was_written_without_quoting_is_read_back(rows: list[tuple[str, str]]) -> None:
    lines = [f"{first}\t{second}\n" for first, second in rows]
    header, read = delimited_rows(Path("train"), lines, DelimitedFormat("\t", quoted=False, guessed=False))
    assert [header, *(fields for _, fields in read)] == [list(row) for row in rows]
