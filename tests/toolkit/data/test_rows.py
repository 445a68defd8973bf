from __future__ import annotations

import math
from decimal import Decimal
from pathlib import Path

import pytest

from rdrop.errors import UserError
from rdrop.toolkit.data.rows import LISTED, BadRows, BadValue, Row, label_value, number_value, text_value

TABLE = Path("data/train.csv")


def row(value: object) -> Row:
    return Row(TABLE, 7, {"column": value})


def test_a_text_is_kept_as_it_stands() -> None:
    assert text_value(row("  two words\n"), "column") == "  two words\n"


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("", "column: got an empty text, expected at least one word"),
        (" \t\n\N{NO-BREAK SPACE}", "column: got an empty text, expected at least one word"),
        (None, "column: got null, expected text"),
        (5, "column: got 5, expected text"),
        (b"\xff", r"column: got b'\xff', expected text"),
        ({"a": 1}, "column: got an object, expected text"),
        (["a"], "column: got the list ['a'], expected text"),
    ],
)
def test_what_is_no_text(value: object, message: str) -> None:
    with pytest.raises(BadValue) as caught:
        text_value(row(value), "column")
    assert str(caught.value) == message


def test_a_column_that_the_row_has_not_is_null() -> None:
    with pytest.raises(BadValue, match="other: got null, expected text"):
        text_value(row("x"), "other")


@pytest.mark.parametrize(
    ("value", "number"), [("3.75", 3.75), (" -1e3 ", -1000.0), (4, 4.0), (0.5, 0.5), (Decimal("2.5"), 2.5)]
)
def test_a_number_is_one_in_text_and_in_json(value: object, number: float) -> None:
    assert number_value(row(value), "column") == number


@pytest.mark.parametrize(
    "value", ["", "high", "nan", "NaN", "inf", "-Infinity", "1e999", "1_000", "1,5", math.nan, math.inf, 10**400, True]
)
def test_what_is_no_finite_number(value: object) -> None:
    with pytest.raises(BadValue, match=r"^column: got .*, expected a finite number such as 3\.75$"):
        number_value(row(value), "column")


@pytest.mark.parametrize(("value", "label"), [("1", "1"), (1, "1"), (" cat ", "cat"), (-2, "-2"), (True, "true")])
def test_a_label_has_one_name_in_every_format(value: object, label: str) -> None:
    assert label_value(row(value), "column") == label


@pytest.mark.parametrize("value", ["", "  ", None, 1.0, math.nan, b"cat", ["cat"]])
def test_what_is_no_label(value: object) -> None:
    with pytest.raises(BadValue, match=r"^column: got .*, expected a label: a word or a whole number$"):
        label_value(row(value), "column")


def test_a_message_shows_the_start_of_a_long_value() -> None:
    with pytest.raises(BadValue) as caught:
        number_value(row("x" * 10**6), "column")
    assert len(str(caught.value)) < 200


def test_fail_names_the_row_and_both_remedies() -> None:
    bad_rows = BadRows("fail")
    with pytest.raises(UserError) as caught, bad_rows.guard(row("high")):
        number_value(row("high"), "column")
    assert str(caught.value) == (
        "data/train.csv:7: column: got the text 'high', expected a finite number such as 3.75. Repair the row, or set "
        "data.on_bad_row: skip to leave such rows out."
    )


def test_fail_names_a_file_without_rows() -> None:
    with pytest.raises(UserError) as caught:
        BadRows("fail").report(Path("photos/cat/1.png"), None, "it is no image")
    assert str(caught.value) == (
        "photos/cat/1.png: it is no image. Repair the file, or set data.on_bad_row: skip to leave such files out."
    )


def test_skip_leaves_the_row_out_and_goes_on() -> None:
    bad_rows = BadRows("skip")
    kept = []
    for value in ("1", "high", "3"):
        with bad_rows.guard(row(value)):
            kept.append(number_value(row(value), "column"))
    assert kept == [1.0, 3.0]
    assert bad_rows.count == 1
    assert bad_rows.listed == [
        "data/train.csv:7: column: got the text 'high', expected a finite number such as 3.75",
    ]


def test_a_guard_lets_other_errors_through() -> None:
    with pytest.raises(ZeroDivisionError), BadRows("skip").guard(row("x")):
        _ = 1 / 0


def test_nothing_skipped_is_nothing_to_tell() -> None:
    bad_rows = BadRows("skip")
    assert (bad_rows.count, bad_rows.listed, bad_rows.sentences(), bad_rows.skipped(TABLE)) == (0, [], [], 0)


def test_one_sentence_for_each_table_and_each_folder() -> None:
    bad_rows = BadRows("skip")
    for number in range(2, 7):
        bad_rows.report(TABLE, number, "too short")
    bad_rows.report(Path("dev.parquet"), 1, "too long")
    for name in ("1.png", "2.png"):
        bad_rows.report(Path("photos/cat") / name, None, "no image")
    assert bad_rows.sentences() == [
        "5 rows of data/train.csv were skipped (data.on_bad_row: skip): line 2: too short; line 3: too short; line 4: "
        "too short; and 2 more.",
        "1 row of dev.parquet was skipped (data.on_bad_row: skip): row 1: too long.",
        "2 files of photos/cat were skipped (data.on_bad_row: skip): 1.png: no image; 2.png: no image.",
    ]
    assert [bad_rows.skipped(path) for path in (TABLE, Path("photos/cat"))] == [5, 2]


def test_all_are_counted_and_the_first_are_listed() -> None:
    bad_rows = BadRows("skip")
    for number in range(LISTED + 50):
        bad_rows.report(TABLE, number, "bad")
    assert bad_rows.count == LISTED + 50
    assert len(bad_rows.listed) == LISTED


def test_a_long_number_is_a_label_of_its_own() -> None:
    assert label_value(row(10**99 + 1), "column") != label_value(row(10**99 + 2), "column")
