"""The built-in data: scikit-learn's digits, 1,797 grey images of 8x8 pixels in ten classes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor
from torch.utils.data import Dataset

from rdrop.toolkit.recipe import Data

CLASSES = 10
BRIGHTEST = 16.0  # the largest pixel value in the data


class TensorRows(Dataset[dict[str, Tensor]]):
    """Rows held in tensors, read a whole batch at a time.

    Args:
        columns: Column name to a tensor whose first axis is the row.
    """

    def __init__(self, **columns: Tensor) -> None:
        self.columns = columns

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))

    def __getitem__(self, index: int | slice) -> dict[str, Tensor]:
        return {name: column[index] for name, column in self.columns.items()}

    def __getitems__(self, indices: list[int]) -> dict[str, Tensor]:
        """The batch of these rows; a DataLoader asks for it in place of the rows one by one."""
        rows = torch.tensor(indices)
        return {name: column[rows] for name, column in self.columns.items()}

    @staticmethod
    def collate(batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """The collator for these rows: `__getitems__` has put the batch together already."""
        return batch


@dataclass(frozen=True)
class Split:
    """What to train on, and what to test on."""

    train: TensorRows
    test: TensorRows
    description: str


def load(data: Data, seed: int) -> Split:
    """The digits as float32 images `(N, 1, 8, 8)` in 0..1 with int64 labels `(N,)`, split by class.

    Args:
        data: How many images to train on, every other image being in the test split, and maybe the seed of
            the draw.
        seed: Seed of the draw if `data` has none.

    Returns:
        The two splits, with the columns `pixel_values` and `labels`, and a sentence about them.

    >>> split = load(Data(train_size=300), seed=0)
    >>> len(split.train), len(split.test)
    (300, 1497)
    """
    images, labels = load_digits(return_X_y=True)
    pixel_values = torch.from_numpy(images).float().view(-1, 1, 8, 8) / BRIGHTEST
    targets = torch.from_numpy(labels).long()
    train, test = train_test_split(
        np.arange(len(labels)),
        train_size=data.train_size,
        stratify=labels,
        random_state=seed if data.split_seed is None else data.split_seed,
    )
    drawn = "anew for each seed" if data.split_seed is None else f"once, with seed {data.split_seed}"
    return Split(
        train=TensorRows(pixel_values=pixel_values[train], labels=targets[train]),
        test=TensorRows(pixel_values=pixel_values[test], labels=targets[test]),
        description=f"scikit-learn's digits, grey images of 8x8 pixels in ten classes: {len(train):,} "
        f"labelled training images, drawn by class {drawn}, and the other {len(test):,} as the test split.",
    )
