from __future__ import annotations

import torch
from torch.utils.data import DataLoader

from rdrop.toolkit import digits
from rdrop.toolkit.recipe import Data


def test_the_split_covers_the_data_once_and_is_stratified() -> None:
    split = digits.load(Data(train_size=300), seed=3)
    train, test = split.train.columns, split.test.columns
    assert train["pixel_values"].shape == (300, 1, 8, 8)
    assert test["pixel_values"].shape == (1497, 1, 8, 8)
    images = torch.cat([train["pixel_values"], test["pixel_values"]]).flatten(1)
    everything = digits.load(Data(train_size=100), seed=9)
    again = torch.cat([everything.train.columns["pixel_values"], everything.test.columns["pixel_values"]])
    assert torch.equal(images.sort(0).values, again.flatten(1).sort(0).values)
    assert train["pixel_values"].dtype == torch.float32
    assert (float(images.min()), float(images.max())) == (0.0, 1.0)
    assert set(train["labels"].bincount().tolist()) <= {29, 30, 31}
    assert "300 labelled training images, drawn by class anew for each seed" in split.description
    assert "other 1,497 as the test split" in split.description


def test_the_seed_draws_the_split_unless_the_recipe_does() -> None:
    def images(split_seed: int | None, seed: int) -> torch.Tensor:
        return digits.load(Data(split_seed=split_seed), seed).train.columns["pixel_values"]

    assert torch.equal(images(None, 1), images(None, 1))
    assert not torch.equal(images(None, 1), images(None, 2))
    assert torch.equal(images(7, 1), images(7, 2))
    assert torch.equal(images(7, 1), images(None, 7))


def test_a_loader_reads_whole_batches_of_the_rows_asked_for() -> None:
    rows = digits.TensorRows(x=torch.arange(5) * 10, labels=torch.arange(5))
    assert len(rows) == 5
    assert rows[3] == {"x": torch.tensor(30), "labels": torch.tensor(3)}
    batches = list(DataLoader(rows, batch_size=2, collate_fn=rows.collate))  # type: ignore[arg-type]
    assert [batch["x"].tolist() for batch in batches] == [[0, 10], [20, 30], [40]]
