from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rdrop.toolkit.guesses import Head, data_guesses, guessed, guessed_answer, neighbours
from rdrop.toolkit.tasks import recipe_class
from tiny_encoder import write

FILM, PLOT = (
    ["A film with a plot.", "It is not one."],
    ["The plot is long, and there is more of it.", "And this, too, is."],
)
TEXT: dict[str, str | None] = {"text": "text", "pair": None, "label": "label"}


def told(head: Head, fields: dict[str, str | None], *given: str) -> tuple[dict[str, str], list[str]]:
    """The guesses without their reasons, and what there is no guess for."""
    found, unknown = guessed(head, fields, given)
    assert all(len(guess.reason) > 9 for guess in found)
    return {guess.key: guess.value for guess in found}, unknown


@pytest.mark.parametrize(
    ("head", "fields", "expected", "unknown"),
    [
        ({"text": FILM, "label": [0, 1]}, TEXT, {}, []),
        ({"id": ["1", "2"], "Review": FILM, "Class": ["a", "b"]}, TEXT, {"text": "Review", "label": "Class"}, []),
        ({"x": FILM, "y": ["a", "b"] * 2}, TEXT, {"text": "x", "label": "y"}, []),
        ({"title": FILM, "comment": PLOT, "label": [0, 1]}, TEXT, {"text": "comment"}, []),
        ({"a": FILM, "b": PLOT, "c": ["1", "2"], "d": ["3", "4"]}, TEXT, {}, ["text", "label"]),
        (
            {"premise": FILM, "hypothesis": PLOT, "gold": ["no", "yes"] * 2},
            TEXT,
            {"text": "premise", "pair": "hypothesis", "label": "gold"},
            [],
        ),
        ({"x": FILM, "label": [0, 1]}, {"text_column": "text"}, {"text_column": "x"}, []),
        (
            {"words": [["a"], ["b"]], "ner_tags": [[0], [1]], "id": ["1", "2"]},
            {"tokens": "tokens", "tags": "tags"},
            {"tokens": "words", "tags": "ner_tags"},
            [],
        ),
        (
            {"x": [["a"], ["b"]], "y": [[0], [1]]},
            {"tokens": "tokens", "tags": "tags"},
            {},
            ["tokens", "tags"],
        ),
        (
            {"id": ["1", "2"], "de": FILM, "en": PLOT, "fr": FILM},
            {"source": "source", "target": "target"},
            {"source": "de", "target": "en"},
            [],
        ),
        (
            {"german": FILM, "english": PLOT},
            {"source": "source", "target": "target"},
            {"source": "german", "target": "english"},
            [],
        ),
        (
            {"source": FILM, "english": PLOT},
            {"source": "source", "target": "target"},
            {"target": "english"},
            [],
        ),
        (
            {"highlights": FILM, "article": PLOT, "id": ["1", "2"]},
            {"document": "document", "summary": "summary"},
            {"document": "article", "summary": "highlights"},
            [],
        ),
        (
            {"subject line": FILM, "mail": PLOT},
            {"document": "document", "summary": "summary"},
            {"document": "mail", "summary": "subject line"},
            [],
        ),
        (
            {"file": ["a.PNG", "b/c.jpg"], "category": ["x", "y"]},
            {"image": "image", "label": "label"},
            {"image": "file", "label": "category"},
            [],
        ),
        (
            {"img": [{"bytes": b"1", "path": None}] * 2, "label": [0, 1]},
            {"image": "image", "label": "label"},
            {"image": "img"},
            [],
        ),
    ],
)
def test_columns_are_guessed_where_those_of_the_recipe_are_absent(
    head: Head, fields: dict[str, str | None], expected: dict[str, str], unknown: list[str]
) -> None:
    assert told(head, fields) == (expected, unknown)


def test_what_the_user_wrote_is_left_alone_and_not_given_twice() -> None:
    head: Head = {"premise": FILM, "hypothesis": PLOT, "class": [0, 1]}
    assert told(head, {"text": "hypothesis", "pair": None, "label": "label"}, "text") == ({"label": "class"}, [])
    assert told(head, TEXT, "text", "label") == ({}, [])
    assert told(head, TEXT, "pair") == ({"label": "class"}, ["text"])
    assert told({"sentence": FILM, "class": [0, 1]}, {"text": "class", "pair": None, "label": "label"}, "text") == (
        {},
        ["label"],
    )


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (["0", "1", "1"], None),
        (["1.0", "0.0"], None),  # whole numbers, as a table with an empty cell writes them
        (["0.5", "1", ""], "regression"),
        ([0.5, None], "regression"),
        (["0.5", "yes"], None),
        (["no, never", "yes"], None),
        (["a,b", "a", "b", "", "b,a"], "multi-label"),
        (["3,27", "3", "27,4", "4"], "multi-label"),
        ([["a"], []], "multi-label"),
        ([True, False], None),
        ([], None),
    ],
)
def test_the_kind_of_answer_follows_from_the_values(values: list[Any], expected: str | None) -> None:
    found = guessed_answer(values, ",")
    assert (found and found[0]) == expected


def test_splits_that_lie_beside_are_of_the_same_kind(tmp_path: Path) -> None:
    for name in ("train.csv", "dev.csv", "validation.tsv", "test.csv.gz"):
        (tmp_path / name).touch()
    (tmp_path / "test.csv").mkdir()
    assert neighbours(tmp_path / "train.csv") == {"validation": tmp_path / "dev.csv"}
    (tmp_path / "validation.csv").touch()
    assert neighbours(tmp_path / "train.csv") == {"validation": tmp_path / "validation.csv"}
    assert neighbours(tmp_path / "test.csv.gz") == {}
    (tmp_path / "train").mkdir()
    (tmp_path / "val").mkdir()
    assert neighbours(tmp_path / "train") == {"validation": tmp_path / "val"}


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".parquet", ".csv.gz", ".jsonl.gz"])
def test_files_of_every_kind_are_looked_at(tmp_path: Path, suffix: str) -> None:
    rows = [{"sentence": f"This is number {number}.", "score": f"{number / 4}"} for number in range(6)]
    write(tmp_path / f"train{suffix}", rows)
    write(tmp_path / f"dev{suffix}", rows)
    write(tmp_path / f"test{suffix}", [{"sentence": row["sentence"]} for row in rows])
    schema = recipe_class("text-classification")
    data: Any = schema.model_validate({"data": {"folder": str(tmp_path), "train": f"train{suffix}"}}).data
    found, unknown = data_guesses(data, {"folder", "train"})
    assert {guess.key: guess.value for guess in found} == {
        "text": "sentence",
        "label": "score",
        "answer": "regression",
        "validation": f"dev{suffix}",
    }
    assert unknown == [f"data.test: test{suffix} is not taken, since it has no column score"]
