from __future__ import annotations

from pathlib import Path

import pytest

from rdrop.errors import UserError
from rdrop.toolkit.data.rows import BadRows
from rdrop.toolkit.text.tagged_sentences import sentence_rows, tags_value, words_value


def test_two_columns_are_the_first_and_the_last_and_know_their_lines(tmp_path: Path) -> None:
    path = tmp_path / "train.iob"
    path.write_text("-DOCSTART- -X- O\n\n\nIn IN O\r\nNew York\tNNP\tB-LOC\n   \n# O\n")
    rows = list(sentence_rows(path, "words", "ner", "utf-8", BadRows()))
    assert [(row.number, row.values) for row in rows] == [
        (4, {"words": ["In", "New York"], "ner": ["O", "B-LOC"]}),
        (7, {"words": ["#"], "ner": ["O"]}),
    ]
    words = list(sentence_rows(path, "words", None, "utf-8", BadRows()))
    assert [row.values for row in words] == [{"words": ["In", "New York"]}, {"words": ["#"]}]


def test_sentences_with_a_lone_word_are_left_out_where_tags_are_wanted(tmp_path: Path) -> None:
    path = tmp_path / "train.conll"
    path.write_text("a O\n\nb\nc O\n\nd O\n")
    bad_rows = BadRows("skip")
    assert [row.number for row in sentence_rows(path, "words", "ner", "utf-8", bad_rows)] == [1, 6]
    assert bad_rows.listed == [
        f"{path}:3: line 3 has a single field, expected a word and its tag, with a space between"
    ]
    assert len(list(sentence_rows(path, "words", None, "utf-8", BadRows()))) == 3


def test_values_are_what_they_say(tmp_path: Path) -> None:
    path = tmp_path / "train.jsonl"
    path.write_text('{"words": ["a", "b"], "ner": [3, "O"]}\n')
    (row,) = sentence_rows(path, "words", "ner", "utf-8", BadRows())
    assert tags_value(row, "ner", words_value(row, "words")) == ["3", "O"]


def test_a_table_of_plain_fields_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"train.tsv: a .tsv file does not hold lists of words; expected .jsonl"):
        sentence_rows(tmp_path / "train.tsv", "words", "ner", "utf-8", BadRows())
    with pytest.raises(UserError, match="train: a nameless file does not hold lists"):
        sentence_rows(tmp_path / "train", "words", "ner", "utf-8", BadRows())
