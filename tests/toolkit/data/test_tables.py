from __future__ import annotations

import csv
import gzip
import io
import json
import os
import tracemalloc
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from rdrop.errors import UserError
from rdrop.toolkit.data import tables as module
from rdrop.toolkit.data.delimited import Quoting
from rdrop.toolkit.data.rows import BadRows, Row, number_value
from rdrop.toolkit.data.tables import read_table, table_columns

DATA = Path(os.environ.get("RDROP_DATA", Path(__file__).parents[3] / "shared" / "data"))
Values = dict[str, Any]


def written(folder: Path, name: str, content: str | bytes | list[Values]) -> Path:
    """A file: text, bytes, or rows of Parquet."""
    path = folder / name
    if isinstance(content, list):
        pq.write_table(pa.Table.from_pylist(content), path, row_group_size=3)
    else:
        data = content.encode() if isinstance(content, str) else content
        path.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    return path


def rows_of(path: Path, columns: Sequence[str] = ("text", "label"), **options: Any) -> list[tuple[int, Values]]:
    bad_rows = options.pop("bad_rows", BadRows("fail"))
    return [(row.number, row.values) for row in read_table(path, columns, bad_rows=bad_rows, **options)]


def refusal(path: Path, columns: Sequence[str] = ("text", "label"), **options: Any) -> str:
    """The message about a file, without the path of its folder."""
    with pytest.raises(UserError) as caught:
        rows_of(path, columns, **options)
    return str(caught.value).replace(f"{path.parent}/", "")


TWO: list[Values] = [{"text": "Guten Tag", "label": "1"}, {"text": "Ade", "label": "0"}]


@pytest.mark.parametrize(
    ("name", "content", "first"),
    [
        ("a.csv", "text,more,label\nGuten Tag,x,1\nAde,y,0\n", 2),
        ("a.CSV.GZ", gzip.compress(b"label,text\r\n1,Guten Tag\r\n0,Ade", mtime=0), 2),
        ("a.tsv", "text\tlabel\nGuten Tag\t1\nAde\t0\n", 2),
        ("a.tsv.gz", "label\ttext\n1\tGuten Tag\n0\tAde", 2),
        ("a.jsonl", '{"text": "Guten Tag", "label": "1", "x": [1]}\n{"label": "0", "text": "Ade"}', 1),
        ("a.ndjson.gz", '{"text": "Guten Tag", "label": "1"}\n{"label": "0", "text": "Ade"}\n', 1),
        ("a.parquet", TWO, 1),
    ],
)
def test_every_format_gives_the_same_rows(
    tmp_path: Path, name: str, content: str | bytes | list[Values], first: int
) -> None:
    assert rows_of(written(tmp_path, name, content)) == [(first, TWO[0]), (first + 1, TWO[1])]


def test_a_text_file_with_a_delimiter_is_a_table(tmp_path: Path) -> None:
    path = written(tmp_path, "a.txt", "text|label\nGuten Tag|1\nAde|0\n")
    assert [values for _, values in rows_of(path, delimiter="|")] == TWO
    assert refusal(path).startswith("a.txt: the fields of a .txt file may be separated by any character; name it in")


@pytest.mark.parametrize("name", ["a.xlsx", "a", "a.json", "a.parquet.gz", "a.csv.zip", ".csv"])
def test_an_unknown_kind_is_answered_with_the_known_ones(tmp_path: Path, name: str) -> None:
    assert refusal(tmp_path / name) == (
        f"{name}: the end of the name does not say what kind of table it is; expected .csv, .tsv, .txt, .jsonl, "
        ".ndjson (each also with .gz after it) or .parquet"
    )


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.csv", "text,pair\na,b\n", [{"text": "a", "pair": "b"}]),
        ("b.csv", "text\na\n", [{"text": "a"}]),
        ("a.jsonl", '{"text": "a"}\n{"text": "b", "pair": null}\n', [{"text": "a"}, {"text": "b", "pair": None}]),
        ("a.parquet", [{"text": "a", "x": 1}], [{"text": "a"}]),
    ],
)
def test_an_optional_column_is_there_where_the_table_has_it(
    tmp_path: Path, name: str, content: str | list[Values], expected: list[Values]
) -> None:
    path = written(tmp_path, name, content)
    found = rows_of(path, ["text"], optional_columns=["pair", "text"])
    assert [values for _, values in found] == expected
    assert "there is no column 'more', only" in refusal(path, ["more"], optional_columns=["more"])


# Faults of the header.


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "text,lable\nx,1\n", "there is no column 'label', only 'text', 'lable'; did you mean 'lable'?"),
        ("a.csv", "text, label\nx, 1\n", "there is no column 'label', only 'text', ' label'; did you mean ' label'?"),
        ("a.csv", "text,lable;x\nx,1\n", "there is no column 'label', only 'text', 'lable;x'"),
        ("a.csv", "a|text,lable\nx,1\n", "there is no column 'text', only 'a|text', 'lable'; did you mean 'a|text'?"),
        ("a.csv", "x" * 10**6 + "\n", "there is no column 'text', only '" + "x" * 39),
        ("a.csv", "x," * 10**5 + "texts\n", "there is no column 'text', only " + "'x', " * 10 + "..."),
        ("a.csv", "Nice.,1\nBad.,0\n", "there is no column 'text', only 'Nice.', '1'"),
        (
            "a.csv",
            "text;label\nx;1\n",
            "there is no column 'text', only 'text;label'; the delimiter looks like ';': set data.delimiter to it",
        ),
        (
            "a.tsv",
            "text,label\nx,1\n",
            "there is no column 'text', only 'text,label'; the delimiter looks like ',': set data.delimiter to it",
        ),
        (
            "a.csv",
            "text\tlabel\nx\t1\n",
            r"there is no column 'text', only 'text\tlabel'; the delimiter looks like '\t': set data.delimiter to it",
        ),
        (
            "a.tsv",
            '"text"\t"label"\nx\t1\n',
            "there is no column 'text', only '\"text\"', '\"label\"'; the names stand in double quotes: set "
            "data.quoting: double",
        ),
        (
            "a.tsv",
            "text\tlabel\rx\t1\r",
            r"there is no column 'label', only 'text', 'label\rx', '1'; the lines seem to end with carriage returns "
            "alone: save the file with line feeds",
        ),
        (
            "a.parquet",
            [{"text": "x", "lable": 1}],
            "there is no column 'label', only 'text', 'lable'; did you mean 'lable'?",
        ),
        (
            "a.parquet",
            [{str(n): n for n in range(99)}],
            "there is no column 'text', only '0', '1', '2', '3', '4', '5', '6', '7', '8', '9', ...",
        ),
    ],
)
def test_a_missing_column_is_answered_with_those_there_are(
    tmp_path: Path, name: str, content: str | list[Values], message: str
) -> None:
    path = written(tmp_path, name, content)
    assert refusal(path) == f"{name}: {message}"
    assert refusal(path, bad_rows=BadRows("skip")) == f"{name}: {message}"


def test_a_wanted_column_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path, "a.csv", "text,label,text,x,x\na,1,b,2,3\n")
    assert refusal(path) == "a.csv: 2 columns are named 'text'; give all but one another name"
    assert refusal(path, ["label"], optional_columns=["text"]).startswith("a.csv: 2 columns are named 'text'")
    assert rows_of(path, ["label"]) == [(2, {"label": "1"})]
    table = pa.table([[1], [2], [3]], names=["text", "text", "label"])
    pq.write_table(table, tmp_path / "a.parquet")
    assert refusal(tmp_path / "a.parquet") == "a.parquet: 2 columns are named 'text'; give all but one another name"
    assert rows_of(tmp_path / "a.parquet", ["label"]) == [(1, {"label": 3})]


def test_a_dot_in_a_name_is_no_path_into_a_column(tmp_path: Path) -> None:
    path = written(tmp_path, "a.parquet", [{"a": {"b": 1, "c": 2}, "a.b": 3}])
    assert rows_of(path, ["a.b", "a"]) == [(1, {"a.b": 3, "a": {"b": 1, "c": 2}})]
    assert rows_of(path, ["a"]) == [(1, {"a": {"b": 1, "c": 2}})]


# Faults of the file.


@pytest.mark.parametrize("name", ["a.csv", "a.tsv.gz", "a.jsonl", "a.parquet"])
def test_a_file_that_is_not_there(tmp_path: Path, name: str) -> None:
    written(tmp_path, f"b{name}", "")
    assert refusal(tmp_path / name) == f"there is no file {name}; did you mean b{name}?"
    (tmp_path / name).mkdir()
    assert refusal(tmp_path / name) == f"{name} is a folder; expected a file"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "", "a.csv is empty; expected a line with the names of the columns and rows below it"),
        ("a.tsv.gz", "\n", "a.tsv.gz is empty; expected a line with the names of the columns and rows below it"),
        ("a.csv", "text,label\n\n", "a.csv has no rows; expected at least one"),
        ("a.jsonl", "\n  \n", "a.jsonl has no rows; expected at least one"),
        ("a.csv", "text,label\nGrüße,1\n".encode("cp1252"), "a.csv:2: the byte 0xfc is not utf-8; save the file as"),
        ("a.csv", "text,label\n".encode("utf-16"), "a.csv is UTF-16, and was read as utf-8; set data.encoding: utf-16"),
        (
            "a.csv",
            'text,label\n"a,1\nb,2\n',
            "a.csv:2: a quoted field begins here and is not closed up to line 3; close",
        ),
        (
            "a.tsv",
            'text\tlabel\n"a"\t1\n',
            "a.tsv: every value of the column 'text' stands in double quotes; set data.q",
        ),
        ("a.parquet", b"", "a.parquet cannot be read as Parquet: Parquet file size is 0 bytes; write or copy it again"),
        (
            "a.parquet",
            b"text,label\na,1\n",
            "a.parquet cannot be read as Parquet: Parquet magic bytes not found in foo",
        ),
    ],
)
def test_a_file_that_cannot_be_used(tmp_path: Path, name: str, content: str | bytes, message: str) -> None:
    path = written(tmp_path, name, content)
    assert refusal(path).startswith(message)
    assert refusal(path, bad_rows=BadRows("skip")).startswith(message)


def test_an_empty_parquet_file_has_no_rows(tmp_path: Path) -> None:
    pq.write_table(
        pa.table({"text": pa.array([], pa.string()), "label": pa.array([], pa.int64())}), tmp_path / "a.parquet"
    )
    assert refusal(tmp_path / "a.parquet") == "a.parquet has no rows; expected at least one"


def test_damage_in_the_middle_of_parquet_is_told(tmp_path: Path) -> None:
    table = pa.table({"text": [f"{number:08d}" for number in range(1000)]})
    pq.write_table(
        table,
        tmp_path / "a.parquet",
        compression="none",
        use_dictionary=False,
        row_group_size=500,
        write_page_checksum=True,
    )
    data = (tmp_path / "a.parquet").read_bytes()
    (tmp_path / "a.parquet").write_bytes(data.replace(b"00000700", b"00000x00"))
    found = read_table(tmp_path / "a.parquet", ["text"], bad_rows=BadRows("fail"))
    assert [next(found).values["text"] for _ in range(300)][-1] == "00000299"
    with pytest.raises(UserError, match=r"a\.parquet cannot be read as Parquet after row \d+: could not verify page"):
        list(found)


# Faults of rows.


@pytest.mark.parametrize(
    ("name", "content", "number", "message"),
    [
        (
            "a.csv",
            "text,label\nok,1\na,1,2\n",
            3,
            "got 3 fields, expected 2 as in the header; put double quotes around",
        ),
        ("a.tsv", "text\tlabel\nok\t1\n\na\n", 4, "got 1 field, expected 2 as in the header"),
        ("a.csv", 'text,label\nok,1\n"a"b,1\n', 3, "text follows a closing quote; quote the whole field and write a"),
        (
            "a.csv",
            "text,label\nok,1\na\0,1\n",
            3,
            "there is a NUL character, which no text has; if the file is UTF-16,",
        ),
        (
            "a.jsonl",
            '{"text": "ok", "label": 1}\n{"text": "a", "lable": 1}\n',
            2,
            "there is no column 'label', only 'text', 'lable'; did you mean 'lable'?",
        ),
        ("a.jsonl", '{"text": "ok", "label": 1}\n\n{}\n', 3, "there is no column 'text', only none"),
        (
            "a.jsonl",
            '{"text": "ok", "label": 1}\n["a", 1]\n',
            2,
            "got the list ['a', 1], expected an object such as {\"text\": ...}",
        ),
        (
            "a.jsonl",
            '{"text": "ok", "label": 1}\n"a"\n',
            2,
            "got the text 'a', expected an object such as {\"text\": ...}",
        ),
        (
            "a.jsonl",
            '{"text": "ok", "label": 1}\n{"text": "a", "label": 1, "text": "b"}\n',
            2,
            "the key 'text' is there twice; keep one of the two",
        ),
        (
            "a.jsonl",
            '{"text": "ok", "label": 1}\n{"text": "a", "label": 1, "x": {"w": 0, "y": 1, "y": 2, "z": 2}}\n',
            2,
            "the key 'y' is there twice; keep one of the two",
        ),
        (
            "a.jsonl",
            '{"text": "ok", "label": 1}\n{"text": "a", "label": NaN}\n',
            2,
            "NaN is not a number of JSON; expected",
        ),
        (
            "a.jsonl",
            '{"text": "ok", "label": 1}\n{"text": "a", "label": -Infinity}\n',
            2,
            "-Infinity is not a number of JSON",
        ),
        ("a.jsonl", '{"text": "ok", "label": 1}\n{"text": "a", "label": 1,}\n', 2, "this is not JSON, "),
        ("a.jsonl", '{"text": "ok", "label": 1}\n{"text": "a",\n', 2, "this is not JSON, "),
        ("a.jsonl", '{"text": "ok", "label": 1}\ntext\n', 2, "this is not JSON, Expecting value at column 1"),
        (
            "a.jsonl",
            '{"text": "ok", "label": 1}\n{"text": "a\tb", "label": 1}\n',
            2,
            "this is not JSON, Invalid control char",
        ),
        (
            "a.jsonl",
            '{"text": "ok", "label": 1}\n{"text": "\\ud83d!", "label": 1}\n',
            2,
            "a text has half a character in it",
        ),
        (
            "a.jsonl",
            '{"text": "ok", "label": 1}\n' + "[" * 10**5 + "\n",
            2,
            "this JSON cannot be read: maximum recursion",
        ),
        (
            "a.jsonl",
            '{"text": "ok", "label": 1}\n' + "9" * 10**5 + "\n",
            2,
            "this JSON cannot be read: Exceeds the limit",
        ),
    ],
)
def test_a_bad_row_ends_the_reading_or_is_left_out(
    tmp_path: Path, name: str, content: str, number: int, message: str
) -> None:
    path = written(tmp_path, name, content)
    told = refusal(path)
    assert told.startswith(f"{name}:{number}: {message}")
    assert told.endswith(". Repair the row, or set data.on_bad_row: skip to leave such rows out.")
    bad_rows = BadRows("skip")
    assert [values["text"] for _, values in rows_of(path, bad_rows=bad_rows)] == ["ok"]
    assert (bad_rows.count, bad_rows.skipped(path)) == (1, 1)
    assert told.startswith(bad_rows.listed[0].replace(f"{tmp_path}/", ""))


def test_an_array_of_objects_is_recognised(tmp_path: Path) -> None:
    path = written(tmp_path, "a.jsonl", '[\n  {"text": "a", "label": 1},\n  {"text": "b", "label": 1}\n]\n')
    assert "; a .jsonl file has one whole object in each line. Repair" in refusal(path)


def test_a_pair_of_escapes_is_a_character(tmp_path: Path) -> None:
    path = written(tmp_path, "a.jsonl", '{"text": "\\ud83d\\ude00 \\u00e4"}\n')
    assert rows_of(path, ["text"]) == [(1, {"text": "\U0001f600 ä"})]


def test_nothing_left_is_an_error_whoever_found_the_faults(tmp_path: Path) -> None:
    path = written(tmp_path, "a.csv", "text,score\na,high\nb\nc,low\n")
    bad_rows = BadRows("skip")

    def scores() -> Iterator[float]:
        for row in read_table(path, ["text", "score"], bad_rows=bad_rows):
            with bad_rows.guard(row):
                yield number_value(row, "score")

    with pytest.raises(UserError) as caught:
        list(scores())
    assert str(caught.value) == (
        f"no row of {path} can be used: 3 rows of {path} were skipped (data.on_bad_row: skip): line 2: score: got the "
        "text 'high', expected a finite number such as 3.75; line 3: got 1 field, expected 2 as in the header; line 4: "
        "score: got the text 'low', expected a finite number such as 3.75."
    )


def test_two_tables_are_told_apart(tmp_path: Path) -> None:
    bad_rows = BadRows("skip")
    first = written(tmp_path, "a.csv", "text,label\na\nb\nc,1\n")
    second = written(tmp_path, "b.csv", "text,label\na,1\nb\n")
    both = zip(
        read_table(first, ["text"], bad_rows=bad_rows), read_table(second, ["text"], bad_rows=bad_rows), strict=True
    )
    assert [(one.number, other.number) for one, other in both] == [(4, 2)]
    assert [sentence.partition(" were ")[0].partition(" was ")[0] for sentence in bad_rows.sentences()] == [
        f"2 rows of {first}",
        f"1 row of {second}",
    ]


# As much as is needed, and in constant memory.


class Pieces(io.RawIOBase):
    """Bytes of any number that are made as they are read."""

    def __init__(self, start: bytes, piece: bytes, pieces: int) -> None:
        self.start, self.piece, self.left, self.given = start, piece, pieces, 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self.start or (self.piece if self.left else b"")
        self.left -= not self.start
        taken, rest = data[: len(buffer)], data[len(buffer) :]
        assert not rest
        self.start = b""
        buffer[: len(taken)] = taken
        self.given += len(taken)
        return len(taken)


ROW = {"csv": b'"Hello, you",1\n', "tsv": b"Hello, you\t1\n", "jsonl": b'{"text": "Hello, you", "label": "1"}\n'}


@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl"])
def test_the_first_row_of_a_huge_file_comes_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    start = {"csv": b"text,label\n", "tsv": b"text\tlabel\n", "jsonl": b""}[kind]
    # Members of gzip one after the other are one file; these are never at their end.
    source = Pieces(gzip.compress(start + ROW[kind]), gzip.compress(ROW[kind] * 100), 10**9)
    monkeypatch.setattr("rdrop.toolkit.data.text_lines.opened", lambda path: io.BufferedReader(source))
    path = tmp_path / f"a.{kind}.gz"
    rows = read_table(path, ["text", "label"], bad_rows=BadRows("fail"))
    assert next(rows).values == {"text": "Hello, you", "label": "1"}
    assert source.given < 50_000


@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl"])
def test_memory_does_not_grow_with_the_file(tmp_path: Path, kind: str) -> None:
    first = {"csv": "text\n", "tsv": "text\n", "jsonl": ""}[kind]
    line = {"csv": '"{}"\n', "tsv": "{}\n", "jsonl": '{{"text": "{}"}}\n'}[kind].format("x" * 500)
    count = 20_000
    path = written(tmp_path, f"a.{kind}.gz", first + line * count)
    tracemalloc.start()
    try:
        assert sum(1 for _ in read_table(path, ["text"], bad_rows=BadRows("fail"))) == count
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 2_000_000  # of 10 million characters


def test_memory_does_not_grow_with_a_group_of_parquet(tmp_path: Path) -> None:
    path, count = tmp_path / "a.parquet", 20_000
    texts = [f"{number:06d}" * 100 for number in range(count)]
    pq.write_table(pa.table({"text": texts}), path, compression="none", use_dictionary=False)
    assert pq.ParquetFile(path).num_row_groups == 1
    before = pa.total_allocated_bytes()
    peak = 0
    tracemalloc.start()
    try:
        for row, text in zip(read_table(path, ["text"], bad_rows=BadRows("fail")), texts, strict=True):
            assert row.values["text"] == text
            peak = max(peak, pa.total_allocated_bytes() - before)
        of_python = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert 0 < peak < 4_000_000  # of 12 million characters
    assert 0 < of_python < 4_000_000


def test_a_reading_that_is_given_up_closes_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = []

    def kept(path: Path) -> object:
        files.append(path.open("rb"))
        return files[-1]

    monkeypatch.setattr("rdrop.toolkit.data.text_lines.opened", kept)
    monkeypatch.setattr(module, "opened", kept)
    for path in (written(tmp_path, "a.csv", "text\na\nb\n"), written(tmp_path, "a.parquet", TWO)):
        rows = read_table(path, ["text"], bad_rows=BadRows("fail"))
        next(rows)
        del rows
    assert [file.closed for file in files] == [True, True]


# Whatever is written is read back; whatever is damaged is rows or a message.

SCALAR = (
    st.none()
    | st.booleans()
    | st.integers(-(2**60), 2**60)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8)
)
TEXT = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=8)
NAMES = st.lists(
    st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1, max_size=5),
    min_size=1,
    max_size=4,
    unique=True,
)


@settings(max_examples=150, deadline=None)
@given(names=NAMES, data=st.data(), delimiter=st.sampled_from([None, ";", "|"]), zipped=st.booleans())
def test_csv_of_the_standard_library_reads_back_equal(
    tmp_path_factory: pytest.TempPathFactory, names: list[str], data: st.DataObject, delimiter: str | None, zipped: bool
) -> None:
    rows = data.draw(st.lists(st.fixed_dictionaries(dict.fromkeys(names, TEXT)), min_size=1, max_size=5))
    file = io.StringIO(newline="")
    writer = csv.DictWriter(file, names, delimiter=delimiter or ",", quoting=csv.QUOTE_ALL)
    writer.writeheader()
    writer.writerows(rows)
    path = written(tmp_path_factory.mktemp("csv"), "a.csv" + ".gz" * zipped, file.getvalue())
    assert [values for _, values in rows_of(path, names, delimiter=delimiter, quoting="double")] == rows


@settings(max_examples=150, deadline=None)
@given(
    rows=NAMES.flatmap(
        lambda names: st.lists(
            st.fixed_dictionaries({name: SCALAR | st.lists(SCALAR, max_size=3) for name in names}),
            min_size=1,
            max_size=5,
        )
    ),
    ascii_only=st.booleans(),
)
def test_json_lines_of_the_standard_library_read_back_equal(
    tmp_path_factory: pytest.TempPathFactory, rows: list[Values], ascii_only: bool
) -> None:
    text = "".join(json.dumps(row, ensure_ascii=ascii_only) + "\n" for row in rows)
    path = written(tmp_path_factory.mktemp("jsonl"), "a.jsonl", text)
    assert rows_of(path, list(rows[0])) == list(enumerate(rows, 1))


COLUMN = st.sampled_from(
    [TEXT, st.binary(max_size=8), st.integers(-(2**60), 2**60), st.booleans(), st.lists(TEXT, max_size=3)]
)


@settings(max_examples=80, deadline=None)
@given(names=NAMES, data=st.data())
def test_parquet_of_pyarrow_reads_back_equal(
    tmp_path_factory: pytest.TempPathFactory, names: list[str], data: st.DataObject
) -> None:
    columns = {name: data.draw(COLUMN) for name in names}
    rows = data.draw(
        st.lists(
            st.fixed_dictionaries({name: st.none() | values for name, values in columns.items()}),
            min_size=1,
            max_size=9,
        )
    )
    path = written(tmp_path_factory.mktemp("parquet"), "a.parquet", rows)
    assert rows_of(path, names) == list(enumerate(rows, 1))


def samples() -> dict[str, bytes]:
    """A sound file of each kind."""
    texts = ["Guten Tag, Welt", 'she said "hi"', "ä\U0001f600", "one\ntwo", "", "x" * 30]
    rows = [{"text": text, "label": str(number % 2)} for number, text in enumerate(texts * 3)]
    table = io.StringIO(newline="")
    writer = csv.DictWriter(table, ["text", "label"])
    writer.writeheader()
    writer.writerows(rows)
    flat = "text\tlabel\n" + "".join(
        f"{row['text']}\t{row['label']}\n".replace("\n", " ", row["text"].count("\n")) for row in rows
    )
    made = {
        "a.csv": table.getvalue().encode(),
        "a.tsv": flat.encode(),
        "a.jsonl": "".join(json.dumps(row) + "\n" for row in rows).encode(),
    }
    made |= {f"{name}.gz": gzip.compress(data, mtime=0) for name, data in made.items()}
    for compression in ("none", "snappy", "gzip"):
        file = pa.BufferOutputStream()
        images = [row | {"image": {"bytes": b"\x89PNG", "path": None}} for row in rows]
        pq.write_table(pa.Table.from_pylist(images), file, compression=compression, row_group_size=5)
        made[f"{compression}.parquet"] = file.getvalue().to_pybytes()
    return made


SAMPLES = samples()


@pytest.mark.parametrize("name", SAMPLES)
def test_the_samples_are_sound(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(SAMPLES[name])
    assert len(rows_of(tmp_path / name)) == 18


@st.composite
def mutated(draw: st.DrawFn) -> tuple[str, bytes]:
    """A file of some kind with a few bytes put in, taken out or changed, or cut short."""
    name = draw(st.sampled_from(sorted(SAMPLES)))
    data = SAMPLES[name]
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, len(data)))
        end = draw(st.sampled_from([at, at + 1, at + 1, at + 9, len(data)]))
        new = draw(
            st.sampled_from([b"", b'"', b"\0", b"\r", b"\n", b",", b"\t", b'""', b"\xff", b"{", b"[", b"\\ud800"])
            | st.binary(max_size=2)
        )
        data = data[:at] + new + data[end:]
    return name, data


@settings(max_examples=2000, deadline=10_000)  # milliseconds: no mutation makes the reader hang
@given(file=mutated(), quoting=st.sampled_from(["auto", "none", "double"]), skip=st.booleans())
@example(file=("a.csv", b'text,label\n"a\n'), quoting="auto", skip=True)
@example(file=("a.jsonl", b'{"text": "\\ud800", "label": 1}'), quoting="auto", skip=False)
def test_a_damaged_file_is_rows_or_a_message(
    tmp_path_factory: pytest.TempPathFactory, file: tuple[str, bytes], quoting: Quoting, skip: bool
) -> None:
    name, data = file
    path = tmp_path_factory.getbasetemp() / name
    path.write_bytes(data)
    bad_rows = BadRows("skip" if skip else "fail")
    message = None
    rows: list[Row] = []
    try:
        rows.extend(read_table(path, ["text", "label"], quoting=quoting, bad_rows=bad_rows))
    except UserError as error:
        message = str(error)
    assert message is not None or rows
    assert message is None or (str(path) in message and len(message) < 2000)
    assert all(set(row.values) == {"text", "label"} for row in rows)
    assert bad_rows.count == 0 or skip


# Public data.


@pytest.mark.skipif(not DATA.is_dir(), reason="the folder of public data is not there (RDROP_DATA)")
@pytest.mark.parametrize(
    ("name", "columns", "quoting", "count"),
    [
        ("cola/dev.tsv.gz", ["sentence", "label"], "auto", 1043),
        ("mrpc/dev.tsv.gz", ["sentence1", "sentence2", "label"], "auto", 500),
        ("stsb/dev.tsv.gz", ["sentence1", "sentence2", "score"], "auto", 1500),
        ("goemotions/dev.tsv.gz", ["text", "labels"], "double", 5426),
        ("wnut17/dev.jsonl.gz", ["tokens", "tags"], "auto", 1009),
        ("multi30k_de_en/dev.tsv.gz", ["de", "en"], "auto", 1014),
        ("aeslc/dev.jsonl.gz", ["document", "summary"], "auto", 1960),
    ],
)
def test_public_data_have_as_many_rows_as_they_say(name: str, columns: list[str], quoting: Quoting, count: int) -> None:
    assert len(rows_of(DATA / name, columns, quoting=quoting)) == count


@pytest.mark.skipif(not DATA.is_dir(), reason="the folder of public data is not there (RDROP_DATA)")
def test_public_data_with_quotes_around_some_texts_are_recognised() -> None:
    message = refusal(DATA / "goemotions" / "dev.tsv.gz", ["text", "labels"])
    assert "'text' stands in double quotes and has quotes written twice; set data.quoting: double if quotes" in message


def test_a_folder_in_place_of_a_table_is_called_so(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    assert "train is a folder; expected a table: .csv" in refusal(tmp_path / "train")


@pytest.mark.parametrize("name", SAMPLES)
def test_the_columns_of_a_table_are_told(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(SAMPLES[name])
    assert table_columns(tmp_path / name)[:2] == ["text", "label"]
