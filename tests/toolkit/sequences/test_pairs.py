from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rdrop.errors import UserError
from rdrop.toolkit.data.rows import BadRows, Row
from rdrop.toolkit.sequences import pairs as text_pairs
from rdrop.toolkit.sequences.pairs import TextPair, TokenLimit, read_pairs, token_rows
from rdrop.toolkit.text.vocabulary import train_vocabulary

TEXTS = ["a rose", "a rose is a rose", "no"]


def rows(*values: dict[str, Any]) -> list[Row]:
    return [Row(Path("dev.jsonl"), number, value) for number, value in enumerate(values, 1)]


def limit(most: int, **fields: Any) -> TokenLimit:
    return TokenLimit(train_vocabulary(TEXTS, "bpe", 280, append_end=True), most, **fields)


def test_further_references_follow_the_target() -> None:
    read = rows({"s": "ein Hund", "t": "a dog", "more": ["one dog", "some dog"]}, {"s": "ja", "t": "yes", "more": []})
    assert list(read_pairs(read, "s", "t", references="more", bad_rows=BadRows())) == [
        TextPair("ein Hund", "a dog", ["a dog", "one dog", "some dog"]),
        TextPair("ja", "yes", ["yes"]),
    ]
    assert next(read_pairs(read, "s", "t", bad_rows=BadRows())).references == ["a dog"]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"s": " ", "t": "yes", "more": []}, r"dev\.jsonl:1: s: got an empty text, expected at least one word"),
        ({"s": "ja", "t": 3, "more": []}, r"dev\.jsonl:1: t: got 3, expected text"),
        ({"s": "ja", "t": None, "more": []}, r"dev\.jsonl:1: t: got null, expected text"),
        (
            {"s": "ja", "t": "yes", "more": "yep"},
            r"got the text 'yep', expected a list of texts; a file of lists",
        ),
        ({"s": "ja", "t": "yes", "more": ["yep", 1]}, r"dev\.jsonl:1: more: got 1, expected text"),
    ],
)
def test_a_row_that_is_no_pair_is_named_or_left_out(values: dict[str, Any], message: str) -> None:
    good = {"s": "nein", "t": "no", "more": []}
    with pytest.raises(UserError, match=message):
        list(read_pairs(rows(values, good), "s", "t", references="more", bad_rows=BadRows()))
    skipping = BadRows("skip")
    pairs = list(read_pairs(rows(values, good), "s", "t", references="more", bad_rows=skipping))
    assert [pair.source for pair in pairs] == ["nein"]
    assert skipping.count == 1


def test_long_texts_are_cut_before_their_end_and_counted() -> None:
    whole, short = limit(99), limit(4)
    complete, ids = whole.ids(TEXTS), short.ids(TEXTS)
    end = short.tokenizer.eos_token_id
    assert (whole.read, whole.cut) == (3, 0)
    assert (short.read, short.cut) == (3, sum(len(row) > 4 for row in complete))
    assert 0 < short.cut < 3
    for row, all_of_it in zip(ids, complete, strict=True):
        assert row[-1] == end
        assert row[:-1] == all_of_it[:-1][:3]
    short.ids(TEXTS)
    assert short.read == 6
    exact = limit(max(map(len, complete)))
    assert exact.ids(TEXTS) == complete
    assert exact.cut == 0


def test_a_prefix_is_put_before_every_text() -> None:
    assert limit(99, prefix="is a ").ids(["rose"]) == limit(99).ids(["is a rose"])


def test_targets_are_read_as_targets() -> None:
    asked: list[dict[str, Any]] = []

    class Tokenizer:
        def __call__(self, **options: Any) -> dict[str, Any]:
            asked.append(options)
            return {"input_ids": [[1]]}

    tokenizer: Any = Tokenizer()
    TokenLimit(tokenizer, 9, is_target=True).ids(["a"])
    TokenLimit(tokenizer, 9).ids(["a"])
    assert [sorted(options) for options in asked] == [["text_target", "verbose"], ["text", "verbose"]]


def test_rows_are_the_same_however_many_are_made_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    pairs = [TextPair(text, text[::-1], []) for text in TEXTS]
    at_once = token_rows(pairs, limit(9), limit(9, is_target=True))
    monkeypatch.setattr(text_pairs, "CHUNK", 2)
    source = limit(9)
    in_parts = token_rows(pairs, source, limit(9, is_target=True))
    assert in_parts.to_list() == at_once.to_list()
    assert in_parts["input_ids"][:] == limit(9).ids(TEXTS)
    assert source.read == 3
