from __future__ import annotations

import gzip
import itertools
import random
import re
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from rdrop.errors import UserError
from rdrop.toolkit.data import text_lines as module
from rdrop.toolkit.data.text_lines import text_lines


def written(folder: Path, data: bytes, name: str = "train.txt") -> Path:
    path = folder / name
    path.write_bytes(gzip.compress(data, 1) if name.endswith(".gz") else data)
    return path


def refusal(path: Path, encoding: str = "utf-8") -> str:
    """The message about a file, without the path of its folder."""
    with pytest.raises(UserError) as caught:
        list(text_lines(path, encoding))
    return str(caught.value).replace(f"{path.parent}/", "")


@settings(max_examples=100, deadline=None)
@given(
    text=st.text(st.sampled_from("ab\n\r\x0b\x85\u2028\0äß€\U0001f600\ufeff"), max_size=40),
    encoding=st.sampled_from(["utf-8", "utf-16", "utf-16-le", "utf-32", "gb18030", "utf-8-sig"]),
    chunk=st.integers(8, 16),
    name=st.sampled_from(["train.txt", "train.txt.GZ"]),
)
@example(text="\0", encoding="utf-16", chunk=8, name="train.txt")  # its first bytes are the mark of UTF-32
def test_lines_are_those_of_the_text(
    tmp_path_factory: pytest.TempPathFactory, text: str, encoding: str, chunk: int, name: str
) -> None:
    data = text.encode(encoding)
    path = tmp_path_factory.mktemp("lines") / name
    path.write_bytes(gzip.compress(data) if name.endswith(".GZ") else data)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "CHUNK", chunk)
        lines = list(text_lines(path, encoding))
    assert lines == re.findall("[^\n]*\n|[^\n]+", data.decode(encoding).removeprefix("\ufeff"))


def test_a_byte_order_mark_is_no_part_of_the_text(tmp_path: Path) -> None:
    assert list(text_lines(written(tmp_path, b"\xef\xbb\xbfa\nb"))) == ["a\n", "b"]
    assert list(text_lines(written(tmp_path, "\ufeffa".encode("utf-16-le")), "utf-16-le")) == ["a"]


@pytest.mark.parametrize("chunk", [1, 7, 2**16])
def test_a_byte_of_another_encoding_is_named_with_its_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk: int
) -> None:
    monkeypatch.setattr(module, "CHUNK", chunk)
    message = refusal(written(tmp_path, "ä\nb\nGrüße\n".encode("cp1252").replace(b"\xe4", "ä".encode())))
    assert message == (
        "train.txt:3: the byte 0xfc is not utf-8; save the file as UTF-8, or set data.encoding to the encoding it has, "
        "such as cp1252, latin-1 or utf-16"
    )


def test_a_character_in_two_pieces_is_judged_as_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CHUNK", 4)
    message = refusal(written(tmp_path, b"a\nb\x83\n\n\n"), "shift_jis")
    assert message.startswith("train.txt:2: the byte 0x83 is not shift_jis; ")


def test_a_file_that_ends_within_a_character_is_told(tmp_path: Path) -> None:
    assert refusal(written(tmp_path, b"a\n\xc3")).startswith("train.txt:2: the byte 0xc3 is not utf-8; ")
    message = refusal(written(tmp_path, b"a\0\n\0b"), "utf-16-le")
    assert message.startswith("train.txt:2: the byte 0x62 is not utf-16-le; ")


def test_utf_16_without_its_mark_is_told(tmp_path: Path) -> None:
    message = refusal(written(tmp_path, "ab\n".encode("utf-16-be")), "utf-16")
    assert message.startswith("train.txt:1: this is not utf-16 (")


@pytest.mark.parametrize(("encoding", "named"), [("utf-16", "UTF-16"), ("utf-32", "UTF-32")])
@pytest.mark.parametrize("taken", ["utf-8", "latin-1"])
def test_a_byte_order_mark_of_another_encoding_is_recognised(
    tmp_path: Path, encoding: str, named: str, taken: str
) -> None:
    assert refusal(written(tmp_path, "text\tlabel\n".encode(encoding)), taken) == (
        f"train.txt is {named}, and was read as {taken}; set data.encoding: {encoding}, or save it as UTF-8"
    )


@pytest.mark.parametrize("encoding", ["utf-99", "", "hex", "rot13", "zlib", "a\0b", "../utf-8"])
def test_an_unknown_encoding_is_named_with_its_key(tmp_path: Path, encoding: str) -> None:
    assert refusal(written(tmp_path, b"a\n"), encoding) == (
        f"data.encoding: got {encoding!r}, expected the name of a text encoding such as utf-8, cp1252, latin-1 or "
        "utf-16"
    )


@pytest.mark.parametrize(
    ("data", "remedy"),
    [
        (gzip.compress(b"text\n", mtime=0), "is gzipped; name it with .gz at the end"),
        (b"PK\x03\x04rest", "is a zip archive or a spreadsheet; unpack it, or export the sheet as CSV"),
        (b"PAR1rest", "is Parquet; name it .parquet"),
    ],
)
def test_other_kinds_of_files_are_recognised(tmp_path: Path, data: bytes, remedy: str) -> None:
    assert refusal(written(tmp_path, data)) == f"train.txt {remedy}"


def test_a_gz_file_that_is_none_is_told(tmp_path: Path) -> None:
    path = tmp_path / "train.csv.gz"
    path.write_text("text,label\n")
    assert refusal(path) == "train.csv.gz is not gzipped; take .gz off its name, or pack it"


def test_a_truncated_gz_file_is_told_after_what_it_has(tmp_path: Path) -> None:
    path = written(tmp_path, b"".join(b"%d\n" % number for number in range(10**5)), "train.csv.gz")
    path.write_bytes(path.read_bytes()[:-1000])
    lines = text_lines(path)
    assert [next(lines) for _ in range(3)] == ["0\n", "1\n", "2\n"]
    with pytest.raises(UserError, match=r"train\.csv\.gz is cut short: its gzip data have no end; copy or download it"):
        list(lines)


def test_a_damaged_gz_file_is_told(tmp_path: Path) -> None:
    path = written(tmp_path, b"text\n" * 50, "train.csv.gz")
    data = bytearray(path.read_bytes())
    path.write_bytes(bytes(data[:-8]) + b"\0\0\0\0" + bytes(data[-4:]))
    assert refusal(path).startswith("train.csv.gz cannot be read to its end: CRC check failed")
    data[10] = 0b111  # a kind of block that there is not
    path.write_bytes(data)
    assert refusal(path).startswith("train.csv.gz cannot be read to its end: Error -3 while decompressing data")


def test_an_empty_file_has_no_lines(tmp_path: Path) -> None:
    assert list(text_lines(written(tmp_path, b""))) == []
    (tmp_path / "empty.csv.gz").write_bytes(b"")
    assert list(text_lines(tmp_path / "empty.csv.gz")) == []


def test_a_line_without_an_end_is_not_gathered_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_LINE", 10**5)
    message = refusal(written(tmp_path, b"a\n" + b"x" * 10**6, "train.csv.gz"))
    assert message == (
        "train.csv.gz:2: the line is longer than 100,000 characters; expected lines that end with a line feed"
    )


@pytest.mark.parametrize("name", ["train.txt", "train.txt.gz"])
def test_only_what_is_asked_for_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    digits = random.Random(0)
    path = written(tmp_path, b"".join(b"%x\n" % digits.getrandbits(4000) for _ in range(2000)), name)
    files = []

    def kept_open(opening: Path) -> object:
        files.append(opening.open("rb"))
        return files[-1]

    monkeypatch.setattr(module, "opened", kept_open)
    lines = text_lines(path)
    assert len(list(itertools.islice(lines, 10))) == 10
    assert path.stat().st_size > 900_000
    assert 0 < files[0].tell() <= 3 * module.CHUNK
    lines.close()  # type: ignore[attr-defined]  # a generator, closed when its reader is done
    assert files[0].closed
