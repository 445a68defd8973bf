from __future__ import annotations

import numpy as np

from rdrop.toolkit.text.exhibits import SHOWN, cut, label_table, largest_errors, most_confidently_wrong


def test_the_most_confident_wrong_answers_come_first_and_no_right_one() -> None:
    confidence = np.array([0.6, 0.9, 0.7, 0.99])
    logits = np.log(np.stack([confidence, 1 - confidence], axis=1))
    texts = [["a", "w"], ["b", "x"], ["c" * 400, "y"], ["d", "z"]]
    listing = most_confidently_wrong(texts, ["first", "second"], logits, np.array([1, 1, 1, 0]), ["no", "yes"])
    assert listing.columns == ["first", "second", "Right", "Predicted", "Confidence"]
    assert [row[0][0] for row in listing.rows] == ["b", "c", "a"]
    assert listing.rows[0] == ["b", "x", "yes", "no", "90.0%"]
    assert listing.rows[1][0] == cut("c" * 400) == "c" * 297 + "..."
    assert listing.reading == "Of 3 wrong answers of 4, the ones with the highest confidence."


def test_listings_are_short() -> None:
    many = np.zeros((1000, 2))
    assert len(most_confidently_wrong([["a"]] * 1000, ["Text"], many, np.ones(1000, int), ["a", "b"]).rows) == SHOWN
    assert len(largest_errors([["a"]] * 1000, ["Text"], many[:, 0], many[:, 1]).rows) == SHOWN


def test_the_largest_errors_come_first_whatever_their_sign() -> None:
    found = largest_errors([["a"], ["b"], ["c"]], ["Text"], np.array([1.0, 5.0, 2.0]), np.array([1.1, 2.5, 6.0])).rows
    assert found == [["c", "6", "2", "-4"], ["b", "2.5", "5", "2.5"], ["a", "1.1", "1", "-0.1"]]


def test_labels_are_ordered_by_how_often_they_occur() -> None:
    table = label_table([("a", 2, 1, 1, 1), ("b", 1500, 0, 0, 0)], "entities")
    assert table.columns[:2] == ["Label", "Entities"]
    assert [row[:2] for row in table.rows] == [["b", "1,500"], ["a", "2"]]
