from __future__ import annotations

import gzip
import json
import os
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rdrop.errors import UserError
from rdrop.toolkit.data.rows import BadRows, Policy
from rdrop.toolkit.language import documents as text_documents
from rdrop.toolkit.language.documents import DocumentRule, Piece, TextData, hold_out_tail, read_documents

TEXT = " \n = Roses = \n \n A rose .\n = = Colours = = \n Red .\n\n \n = Tulips = \n None .\n"


def documents(path: Path, rule: DocumentRule = "file", policy: Policy = "fail", encoding: str = "utf-8") -> list[str]:
    """The whole documents."""
    found = [""]
    for piece in read_documents(path, TextData(documents=rule, encoding=encoding), BadRows(policy)):
        found[-1] += piece.text
        if piece.ends:
            found.append("")
    assert found[-1] == ""
    return found[:-1]


def written(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


@pytest.mark.parametrize("name", ["a.txt", "a.txt.gz", "wiki.train.tokens", "README"])
def test_a_text_file_is_one_document_as_it_is(name: str, tmp_path: Path) -> None:
    assert documents(written(tmp_path / name, TEXT + "ü\r\n\r\n  x")) == [TEXT + "ü\r\n\r\n  x"]


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ("line", [" = Roses = ", " A rose .", " = = Colours = = ", " Red .", " = Tulips = ", " None ."]),
        ("blank-line", [" = Roses = \n", " A rose .\n = = Colours = = \n Red .\n", " = Tulips = \n None .\n"]),
        (
            "wikitext",
            [" \n = Roses = \n \n A rose .\n = = Colours = = \n Red .\n\n \n", " = Tulips = \n None .\n"],
        ),
    ],
)
def test_the_recipe_says_what_a_document_is(rule: DocumentRule, expected: list[str], tmp_path: Path) -> None:
    assert documents(written(tmp_path / "a.txt", TEXT), rule) == expected


def test_text_before_the_first_heading_is_a_document(tmp_path: Path) -> None:
    assert documents(written(tmp_path / "a.txt", "Foreword\n = A = \n"), "wikitext") == ["Foreword\n", " = A = \n"]
    assert documents(written(tmp_path / "a.txt", "= = \n = A = \n"), "wikitext") == ["= = \n", " = A = \n"]


def test_the_text_files_of_a_folder_are_read_by_name_and_never_joined(tmp_path: Path) -> None:
    written(tmp_path / "b.txt", "second")
    written(tmp_path / "a" / "z.txt.gz", "first")
    written(tmp_path / "notes.md", "not read")
    assert documents(tmp_path) == ["first", "second"]


def test_each_row_of_a_table_is_a_document_whatever_lines_it_has(tmp_path: Path) -> None:
    texts = ["one\n\ntwo\u2028three", " = A = "]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": text, "id": 1}) + "\n" for text in texts))
    pq.write_table(pa.table({"text": texts}), tmp_path / "a.parquet")
    written(tmp_path / "a.csv.gz", 'text\n"one\n\ntwo\u2028three"\n = A = \n')
    for name in ["a.jsonl", "a.parquet", "a.csv.gz"]:
        assert documents(tmp_path / name, "line") == texts


def test_a_long_document_comes_in_pieces_that_end_at_line_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_documents, "PIECE", 10)
    path = written(tmp_path / "a.txt", "aaaa\nbbbb\ncccccccccccccccc\ndd")
    pieces = list(read_documents(path, TextData(), BadRows()))
    assert pieces == [
        Piece("aaaa\nbbbb\n", ends=False),
        Piece("cccccccccccccccc\n", ends=False),
        Piece("dd", ends=True),
    ]
    assert documents(path) == ["aaaa\nbbbb\ncccccccccccccccc\ndd"]
    assert documents(path, "line") == ["aaaa", "bbbb", "cccccccccccccccc", "dd"]


def test_nothing_is_read_before_it_is_asked_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    read = 0

    def endless(path: Path, encoding: str) -> Iterator[str]:
        nonlocal read
        while True:
            read += 1
            assert read < 10 * text_documents.PIECE
            yield "a line of an endless text\n"

    monkeypatch.setattr(text_documents, "text_lines", endless)
    pieces = list(islice(read_documents(tmp_path / "endless.txt", TextData(), BadRows()), 3))
    assert read < 3 * (text_documents.PIECE // 26 + 2)
    assert sum(len(piece.text) for piece in pieces) == 26 * read


def test_a_file_without_text_ends_the_reading(tmp_path: Path) -> None:
    for text in ["", " \n\t\n"]:
        with pytest.raises(UserError, match=r"a\.txt has no text in it; expected at least one word$"):
            documents(written(tmp_path / "a.txt", text))


def test_a_file_of_a_folder_without_text_goes_to_the_policy(tmp_path: Path) -> None:
    written(tmp_path / "a.txt", "\n")
    written(tmp_path / "b.txt", "text")
    with pytest.raises(
        UserError, match=r"a\.txt: there is no text in it, expected at least one word\. Repair the file"
    ):
        documents(tmp_path)
    assert documents(tmp_path, policy="skip") == ["text"]
    (tmp_path / "b.txt").unlink()
    with pytest.raises(UserError, match=r"nothing is left of .*: 1 file of .* was skipped .*a\.txt: there is no text"):
        documents(tmp_path, policy="skip")


def test_a_folder_without_text_files_is_told(tmp_path: Path) -> None:
    written(tmp_path / "a.md", "text")
    with pytest.raises(UserError, match=r"holds no file that ends in \.txt or \.txt\.gz; expected at least one$"):
        documents(tmp_path)


def test_a_link_that_leads_out_of_the_folder_is_not_followed(tmp_path: Path) -> None:
    secret = written(tmp_path / "secret.txt", "secret")
    written(tmp_path / "data" / "a.txt", "text")
    (tmp_path / "data" / "b.txt").symlink_to(secret)
    with pytest.raises(UserError, match=r"b\.txt: the path .* leads out of the data folder"):
        documents(tmp_path / "data")
    assert documents(tmp_path / "data", policy="skip") == ["text"]


def test_a_row_without_text_goes_to_the_policy(tmp_path: Path) -> None:
    path = written(tmp_path / "a.jsonl", '{"text": "one"}\n{"text": " "}\n{"text": 3}\n{"text": "two"}\n')
    with pytest.raises(UserError, match=r"a\.jsonl:2: text: got an empty text, expected at least one word\. Repair"):
        documents(path)
    bad_rows = BadRows("skip")
    assert [piece.text for piece in read_documents(path, TextData(), bad_rows)] == ["one", "two"]
    assert bad_rows.listed == [
        f"{path}:2: text: got an empty text, expected at least one word",
        f"{path}:3: text: got 3, expected text",
    ]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("missing.txt", None, r"there is no file .*missing\.txt; check the path"),
        ("latin.txt", "Grün\nSchöne".encode("latin-1"), r"latin\.txt:1: the byte 0xfc is not utf-8; save the file as"),
        (
            "cut.txt.gz",
            gzip.compress(b"a rose\n" * 99, mtime=0)[:-9],
            r"cut\.txt\.gz is cut short: its gzip data have no end",
        ),
        ("packed.txt", gzip.compress(b"a rose", mtime=0), r"packed\.txt is gzipped; name it with \.gz at the end"),
        ("a.jsonl", b'{"body": "one"}\n', r"a\.jsonl.* there is no column 'text', only 'body'"),
    ],
)
def test_a_file_that_cannot_be_read_is_named(name: str, content: bytes | None, message: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        documents(tmp_path / name)


def test_the_encoding_is_that_of_the_recipe(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes("Grün".encode("latin-1"))
    assert documents(tmp_path / "a.txt", encoding="latin-1") == ["Grün"]


def joined(pieces: list[Piece]) -> str:
    return "".join(piece.text for piece in pieces)


@pytest.mark.parametrize("fraction", [0.05, 0.1, 0.5, 0.9])
@pytest.mark.parametrize("length", [7, 200, 100_000])
def test_the_held_out_part_is_the_end_of_the_text(fraction: float, length: int) -> None:
    lines = [f"line {i} of document {i // length}\n" for i in range(400)]
    pieces = [
        Piece("".join(lines[start : start + 7]), ends=(start + 7) % (7 * length) == 0 or start + 7 >= len(lines))
        for start in range(0, len(lines), 7)
    ]
    kept, held_out = hold_out_tail(pieces, fraction, "train.txt")
    assert joined(kept) + joined(held_out) == "".join(lines)
    assert len(joined(held_out)) == pytest.approx(fraction * len("".join(lines)), abs=30)
    assert joined(kept).endswith("\n")
    assert kept[-1].ends
    assert held_out[-1].ends
    assert all(piece.text for piece in (*kept, *held_out))


def test_documents_of_one_line_are_not_cut() -> None:
    pieces = [Piece("x" * 10, True) for _ in range(10)]
    kept, held_out = hold_out_tail(pieces, 0.25, "train.txt")
    assert (kept, held_out) == (pieces[:7], pieces[7:])


def test_a_text_without_line_ends_is_cut_where_the_fraction_falls() -> None:
    assert hold_out_tail([Piece("abcdefghij", True)], 0.3, "train.txt") == (
        [Piece("abcdefg", True)],
        [Piece("hij", True)],
    )


@pytest.mark.parametrize("fraction", [0.0, 0.2, 0.9])
def test_a_text_that_is_too_short_to_hold_any_out(fraction: float) -> None:
    with pytest.raises(
        UserError, match=r"^train\.txt: of 1 characters, data\.validation_fraction 0.* on one side; add"
    ):
        hold_out_tail([Piece("a", True)], fraction, "train.txt")


@pytest.mark.skipif(os.name == "nt", reason="links need rights on Windows")
def test_a_folder_below_that_is_a_link_is_not_entered(tmp_path: Path) -> None:
    written(tmp_path / "elsewhere" / "b.txt", "secret")
    written(tmp_path / "data" / "a.txt", "text")
    (tmp_path / "data" / "more").symlink_to(tmp_path / "elsewhere")
    assert documents(tmp_path / "data") == ["text"]
