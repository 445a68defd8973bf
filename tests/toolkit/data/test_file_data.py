from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from rdrop.errors import UserError
from rdrop.toolkit.data.file_data import FileData, draw, hold_out, named_path, split_seed
from rdrop.toolkit.recipe import Data

LABELS = ["a"] * 60 + ["b"] * 30 + ["c"] * 10


def test_what_is_held_out_has_the_shares_of_the_classes() -> None:
    kept, held_out = hold_out(LABELS, 100, 0.2, seed=0, name="train.csv")
    assert sorted([*kept, *held_out]) == list(range(100))
    assert Counter(LABELS[i] for i in held_out) == {"a": 12, "b": 6, "c": 2}


def test_the_seed_alone_decides_what_is_held_out() -> None:
    first, again, other = (hold_out(LABELS, 100, 0.2, seed=seed, name="train.csv")[1] for seed in (0, 0, 1))
    assert first.tolist() == again.tolist() != other.tolist()


def test_without_classes_any_rows_are_held_out() -> None:
    kept, held_out = hold_out(None, 10, 0.3, seed=0, name="train.csv")
    assert (len(kept), len(held_out)) == (7, 3)
    assert not set(kept) & set(held_out)


def test_a_class_with_one_example_stays_in_training() -> None:
    labels = [*LABELS, "rare"]
    kept, held_out = hold_out(labels, 101, 0.2, seed=0, name="train.csv")
    assert 100 in kept
    assert {labels[i] for i in held_out} == {"a", "b", "c"}


@pytest.mark.parametrize(
    ("labels", "count", "fraction", "message"),
    [
        (["a", "b"] * 2, 4, 0.1, "got 4 rows of 2 classes, of which data.validation_fraction 0.1 holds out 0"),
        (["a", "b"] * 4, 8, 0.9, "holds out 7; expected at least one of each class on either side"),
        (None, 3, 0.1, "got 3 rows, of which data.validation_fraction 0.1 holds out 0; expected at least one row"),
        (["a", "b", "c"], 3, 0.5, "or name a file in data.validation"),
        ([], 0, 0.5, "got 0 rows"),
    ],
)
def test_too_few_rows_to_hold_any_out(labels: list[str] | None, count: int, fraction: float, message: str) -> None:
    with pytest.raises(UserError, match=r"train\.csv: ") as caught:
        hold_out(labels, count, fraction, seed=0, name="train.csv")
    assert message in str(caught.value)


def test_a_draw_has_the_shares_of_the_classes() -> None:
    drawn = draw(LABELS, np.arange(100), 20, seed=0, name="train.csv")
    assert Counter(LABELS[i] for i in drawn) == {"a": 12, "b": 6, "c": 2}
    assert drawn.tolist() == draw(LABELS, np.arange(100), 20, seed=0, name="train.csv").tolist()
    assert drawn.tolist() != draw(LABELS, np.arange(100), 20, seed=1, name="train.csv").tolist()


def test_only_the_given_positions_are_drawn() -> None:
    given = np.arange(0, 100, 2)
    assert set(draw(LABELS, given, 20, seed=0, name="train.csv")) <= set(given)
    assert draw(LABELS, given, None, seed=0, name="train.csv").tolist() == given.tolist()
    assert draw(LABELS, given, 50, seed=0, name="train.csv").tolist() == given.tolist()


def test_nearly_everything_is_drawn_where_the_rest_cannot_have_every_class() -> None:
    drawn = draw(LABELS, np.arange(100), 99, seed=0, name="train.csv")
    assert len(set(drawn)) == 99


@pytest.mark.parametrize(
    ("size", "message"),
    [
        (101, "data.train_size is 101, but there are only 100 rows to draw from"),
        (2, "data.train_size is 2, expected at least 3, one example for each class"),
    ],
)
def test_a_draw_that_is_impossible(size: int, message: str) -> None:
    with pytest.raises(UserError, match=r"train\.csv: ") as caught:
        draw(LABELS, np.arange(100), size, seed=0, name="train.csv")
    assert message in str(caught.value)


def test_the_recipes_seed_of_the_split_goes_before_that_of_the_run() -> None:
    assert split_seed(Data(), seed=7) == 7
    assert split_seed(Data(split_seed=0), seed=7) == 0


def test_paths_start_from_the_data_folder(tmp_path: Path) -> None:
    (tmp_path / "train.csv").touch()
    data = FileData(folder=str(tmp_path))
    assert named_path(data, "train") == tmp_path.resolve() / "train.csv"
    assert named_path(data, "validation") is None


@pytest.mark.parametrize("name", ["../train.csv", "/etc/passwd", "", "."])
def test_a_path_that_leaves_the_data_folder_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match=r"data\.test: the path .* \(data\.folder\)"):
        named_path(FileData(folder=str(tmp_path), test=name), "test")


def test_a_path_that_leads_nowhere_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"data\.train: there is no .*train\.csv; expected a file or folder in"):
        named_path(FileData(folder=str(tmp_path)), "train")
