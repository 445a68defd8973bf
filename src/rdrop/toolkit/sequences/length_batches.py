"""Batches of sequences of about one length, bounded in tokens, and a Trainer that takes them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from torch.utils.data import DataLoader, Dataset, Sampler

from rdrop.integrations.transformers import RDropTrainer


class LengthBatches(Sampler[list[int]]):
    """Positions of the rows of each batch, rows of about one length together.

    Which rows share a batch is drawn once: rows are shuffled, sorted by length and cut, so that rows of one length meet
    at random. The batches come in an order that is drawn anew in every epoch. Seed and epoch alone decide it, so a
    training that is resumed in the middle of an epoch goes on with the batches that it has not seen.

    Args:
        lengths: Tokens of each row (N); of a pair, those of the longer side.
        rows: Most rows in a batch.
        tokens: Most tokens in a batch, padding included; None: any number. A row that is longer is a batch by itself.
        seed: Seed of the draws.

    >>> batches = LengthBatches([3, 9, 4, 8, 3], rows=4, tokens=16, seed=0)
    >>> sorted(sorted(batch) for batch in batches)
    [[0, 2, 4], [1], [3]]
    """

    def __init__(self, lengths: Sequence[int], *, rows: int, tokens: int | None, seed: int) -> None:
        self.seed = seed
        self.epoch = 0
        shuffled = np.random.default_rng(seed).permutation(len(lengths))
        self.batches: list[list[int]] = []
        for row in shuffled[np.argsort(np.asarray(lengths)[shuffled], kind="stable")].tolist():
            count = len(self.batches[-1]) + 1 if self.batches else rows + 1
            # Rows get longer, so the last one decides how wide the batch is.
            if count > rows or (tokens is not None and count * lengths[row] > tokens):
                self.batches.append([])
            self.batches[-1].append(row)

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[list[int]]:
        for index in np.random.default_rng([self.seed, self.epoch]).permutation(len(self.batches)):
            yield self.batches[index]

    def set_epoch(self, epoch: int) -> None:
        """Chooses the order; the Trainer calls it before every epoch."""
        self.epoch = epoch

    @property
    def sampler(self) -> LengthBatches:
        """Where accelerate looks for `set_epoch` inside the wrappers that skip batches or share them out."""
        return self


class BatchedRows(Dataset[dict[str, Any]]):
    """Rows with the batches they are trained in.

    Args:
        rows: A data set with a length.
        batches: Positions of its rows, batch by batch.
    """

    def __init__(self, rows: Any, batches: LengthBatches) -> None:
        self.rows = rows
        self.batches = batches

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        row: dict[str, Any] = self.rows[index]
        return row

    def __getitems__(self, indices: list[int]) -> list[dict[str, Any]]:
        """These rows; a DataLoader asks for them in place of the rows one by one."""
        found: list[dict[str, Any]] = self.rows.__getitems__(indices)
        return found


class LengthBatchTrainer(RDropTrainer):
    """`RDropTrainer` that trains on the batches of `BatchedRows`, and on other rows as ever."""

    def get_train_dataloader(self) -> DataLoader[Any]:
        """The training batches; accelerate shares them out to several processes."""
        rows: Any = self.train_dataset
        if not isinstance(rows, BatchedRows):
            loader: DataLoader[Any] = super().get_train_dataloader()
            return loader
        prepared: DataLoader[Any] = self.accelerator.prepare(
            DataLoader(
                rows,
                batch_sampler=rows.batches,
                collate_fn=self.data_collator,
                num_workers=self.args.dataloader_num_workers,
                pin_memory=self.args.dataloader_pin_memory,
            )
        )
        return prepared
