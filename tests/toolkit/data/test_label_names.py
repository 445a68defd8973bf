from __future__ import annotations

from pathlib import Path

import pytest

from rdrop.errors import UserError
from rdrop.toolkit.data.label_names import LabelNames, given_names, learned_names, require_examples, without_examples
from rdrop.toolkit.data.rows import BadValue

PATH = Path("train.csv")


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        (["b", "a", "b"], ("a", "b")),
        (["10", "9", "-1", "9"], ("-1", "9", "10")),
        (["10", "9", "b"], ("10", "9", "b")),
        (["1", "01"], ("01", "1")),
    ],
)
def test_names_are_sorted_as_numbers_where_all_are_whole_numbers(labels: list[str], names: tuple[str, ...]) -> None:
    assert learned_names(labels, PATH).names == names
    assert learned_names(reversed(labels), PATH).names == names


def test_a_name_goes_before_a_number() -> None:
    names = LabelNames(("1", "0", "x"), Path("labels.txt"), numbered=True)
    assert [names.known(value, "label") for value in ("1", "0", "2", "x")] == ["1", "0", "x", "x"]
    with pytest.raises(
        BadValue, match=r"label: got the label '3', expected one of the 3 names in labels.txt, or its num"
    ):
        names.known("3", "label")
    with pytest.raises(
        BadValue, match=r"label: got the label '2', which no row of train.csv has; expected one of a, b$"
    ):
        learned_names(["a", "b"], PATH).known("2", "label")


def test_many_names_are_not_all_in_the_message() -> None:
    with pytest.raises(BadValue) as caught:
        learned_names(map(str, range(1000)), PATH).known("x", "label")
    assert "29, ..." in str(caught.value)
    assert "30, " not in str(caught.value)


def test_a_file_of_names_is_read_in_its_order_and_encoding(tmp_path: Path) -> None:
    path = tmp_path / "names.txt"
    path.write_text("zufrieden \nwütend\n\n", encoding="cp1252")
    assert given_names(path, "cp1252") == LabelNames(("zufrieden", "wütend"), path, numbered=True)
    with pytest.raises(UserError, match=r"names.txt:2: the byte 0xfc is not utf-8"):
        given_names(path, "utf-8")


def test_classes_need_examples_and_labels_without_any_are_told() -> None:
    names = LabelNames(("a", "b", "c"), Path("labels.txt"))
    require_examples(names, {"a", "b", "c"}, PATH, column="label")
    with pytest.raises(UserError, match=r"train.csv: no row has the label 'b', 'c' of labels.txt; add examples"):
        require_examples(names, {"a"}, PATH, column="label")
    with pytest.raises(UserError, match=r"train.csv: the label of every row is 'a' \(column label\)"):
        require_examples(LabelNames(("a",), PATH), {"a"}, PATH, column="label")
    assert without_examples(names, {"a", "b", "c"}) == []
    assert without_examples(names, {"a"}) == ["No training example has 2 of the 3 labels: b, c."]


def test_a_label_of_any_length_is_read_and_cut_in_messages() -> None:
    digits = "9" * 5000  # more than Python makes a number of
    assert learned_names([digits, "10"], PATH).names == ("10", digits)
    for names in (LabelNames(("a", "b" * 5000), PATH), LabelNames(("a", "b" * 5000), PATH, numbered=True)):
        with pytest.raises(BadValue, match="got the label") as caught:
            names.known(digits, "label")
        assert len(str(caught.value)) < 400
