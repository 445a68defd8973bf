from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

import pytest
from torch.utils.data import DataLoader

from rdrop.errors import UserError
from rdrop.toolkit.data import labelled_splits
from rdrop.toolkit.data.labelled_splits import LabelledData, split_paths, streamed, tokenized


def test_streamed_rows_come_once_an_epoch_in_an_order_of_its_own_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(labelled_splits, "CHUNK", 7)
    reads: list[int] = []
    chunks: list[int] = []

    def examples() -> Iterator[int]:
        reads.append(0)
        yield from range(30)

    def columns(some: list[int]) -> dict[str, list[int]]:
        chunks.append(len(some))
        return {"number": some, "square": [n * n for n in some]}

    rows = streamed(examples, columns, buffer=10, seed=3)
    assert not reads
    first = [row["number"] for row in islice(rows, 30)]
    assert sorted(first) == list(range(30)) != first
    assert chunks == [7, 7, 7, 7, 2]
    # From the tenth on one waits in the buffer; so the first of all is one of the first ten.
    assert first[0] < 10
    both = [row["number"] for row in islice(DataLoader(rows, batch_size=None), 60)]
    assert both[:30] == first
    assert sorted(both[30:]) == list(range(30))
    assert both[30:] != first
    assert all(row["square"] == row["number"] ** 2 for row in islice(rows, 40))


def test_a_table_that_has_become_empty_ends_the_stream() -> None:
    left = [3]

    def examples() -> Iterator[str]:
        yield from "ab" * left.pop() if left else ""

    assert len(list(streamed(examples, lambda some: {"text": some}, buffer=2, seed=0))) == 6


def test_many_examples_are_tokenized_a_few_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(labelled_splits, "CHUNK", 7)
    chunks: list[int] = []

    def columns(some: Sequence[int]) -> tuple[dict[str, list[int]], int]:
        chunks.append(len(some))
        return {"number": list(some)}, sum(n > 10 for n in some)

    rows, long = tokenized(range(20), columns)
    assert rows["number"][:] == list(range(20))
    assert (long, chunks) == (9, [7, 7, 6])


def test_a_split_stays_in_the_folder_and_is_not_the_training_split(tmp_path: Path) -> None:
    for name in ("train.csv", "dev.csv"):
        (tmp_path / name).touch()
    (tmp_path / "link.csv").symlink_to(tmp_path / "train.csv")

    def paths(**named: str | None) -> dict[str, Path]:
        return split_paths(LabelledData(folder=str(tmp_path), **named))  # type: ignore[arg-type]

    assert paths(test="dev.csv") == {"train": tmp_path / "train.csv", "test": tmp_path / "dev.csv"}
    with pytest.raises(UserError, match=r"data.validation is train.csv, which is the training split"):
        paths(validation="link.csv")
    with pytest.raises(UserError, match=r"data.test: there is no .*tset.csv; expected a file"):
        paths(test="tset.csv")
    with pytest.raises(UserError, match=r"data.train: the path '/etc/passwd' leads out of the data folder"):
        paths(train="/etc/passwd")
