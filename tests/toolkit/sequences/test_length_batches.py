from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate.data_loader import (
    BatchSamplerShard,
    SkipBatchSampler,
    prepare_data_loader,
)
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader, TensorDataset
from transformers import TrainerCallback

import tiny_translation as tiny
from rdrop.integrations.transformers import RDropTrainer
from rdrop.toolkit.arms import objective
from rdrop.toolkit.sequences.length_batches import BatchedRows, LengthBatches, LengthBatchTrainer
from rdrop.toolkit.train import build_model, make_trainer


@given(
    lengths=st.lists(st.integers(1, 30), min_size=1, max_size=60),
    rows=st.integers(1, 9),
    tokens=st.none() | st.integers(1, 90),
    seed=st.integers(0, 5),
)
def test_batches_hold_every_row_once_within_their_bounds(
    lengths: list[int], rows: int, tokens: int | None, seed: int
) -> None:
    batches = LengthBatches(lengths, rows=rows, tokens=tokens, seed=seed)
    found = list(batches)
    assert len(found) == len(batches)
    assert sorted(row for batch in found for row in batch) == list(range(len(lengths)))
    for batch in found:
        assert len(batch) <= rows
        width = max(lengths[row] for row in batch)
        assert tokens is None or len(batch) == 1 or len(batch) * width <= tokens
    # Of about one length: the batches' intervals of lengths touch at most at their ends.
    spans = sorted((min(lengths[row] for row in batch), max(lengths[row] for row in batch)) for batch in found)
    assert all(before[1] <= after[0] for before, after in pairwise(spans))


def test_no_batch_could_take_one_more_row() -> None:
    lengths = np.random.default_rng(0).integers(1, 20, size=200).tolist()
    batches = sorted(LengthBatches(lengths, rows=50, tokens=64, seed=0).batches, key=lambda batch: lengths[batch[-1]])
    for batch, following in pairwise(batches):
        assert (len(batch) + 1) * lengths[following[0]] > 64


def test_the_seed_draws_the_batches_and_the_epoch_their_order() -> None:
    def order(seed: int, epoch: int) -> list[list[int]]:
        batches = LengthBatches([5] * 20, rows=4, tokens=None, seed=seed)
        batches.set_epoch(epoch)
        return list(batches)

    assert order(0, 0) == order(0, 0)
    assert order(0, 0) != order(0, 1)
    assert sorted(order(0, 0)) == sorted(order(0, 1))
    assert sorted(order(0, 0)) != sorted(order(1, 0))


def test_the_epoch_reaches_the_batches_through_the_wrappers_of_accelerate() -> None:
    batches = LengthBatches([5] * 20, rows=4, tokens=None, seed=0)
    rows = TensorDataset(torch.zeros(20))
    for wrapped in (SkipBatchSampler(batches, 2), BatchSamplerShard(batches, 2, 0), batches):
        loader = prepare_data_loader(DataLoader(rows, batch_sampler=wrapped), put_on_device=False)
        loader.set_epoch(3)
        assert batches.epoch == 3
        batches.set_epoch(0)


def test_processes_share_the_batches_out() -> None:
    batches = LengthBatches(list(range(1, 25)), rows=4, tokens=30, seed=0)
    assert len(batches) % 2
    first, second = (list(BatchSamplerShard(batches, 2, index)) for index in range(2))
    assert len(first) == len(second) == (len(batches) + 1) // 2
    assert {row for batch in [*first, *second] for row in batch} == set(range(24))


class _Seen(TrainerCallback):
    """Notes the weights after every step, and the batches that the model is given."""

    def __init__(self, model: torch.nn.Module, stop_at: int | None) -> None:
        self.batches: list[list[list[int]]] = []
        self.stop_at = stop_at
        model.get_encoder().register_forward_pre_hook(self._note, with_kwargs=True)  # type: ignore[operator]

    def _note(self, module: torch.nn.Module, _: Any, inputs: dict[str, Any]) -> None:
        if module.training:
            self.batches.append(inputs["input_ids"].tolist())

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == self.stop_at:
            control.should_save = control.should_training_stop = True


@pytest.mark.parametrize(("batching", "accumulation"), [("tokens", 1), ("length", 2)])
def test_a_run_that_is_resumed_ends_with_the_weights_of_an_undisturbed_one(
    tmp_path: Path, batching: str, accumulation: int
) -> None:
    tiny.write_splits(tmp_path)
    task = tiny.task(
        tmp_path,
        training={
            "batching": batching,
            "gradient_accumulation_steps": accumulation,
            "batch_size": 7,
            "eval_every_steps": 100,
        },
        rdrop={"strategy": "concat"},  # others are tried on the first batch, which would be noted twice
    )
    splits = task.load(0)
    batches = task.batches_per_epoch(splits.train)
    assert batches is not None
    assert batches % 2  # the last step of an epoch has one batch where others have two
    steps = 3 * -(-batches // accumulation)
    stop = steps // 2 + 1  # in the middle of the second epoch

    def trained(folder: str, stop_at: int | None, resume: bool) -> tuple[_Seen, dict[str, torch.Tensor]]:
        model = build_model(task, 0)
        trainer = make_trainer(
            task,
            objective("rdrop", task.recipe),
            0,
            model,
            splits,
            steps=steps,
            nominal=steps,
            folder=str(tmp_path / folder),
            save_strategy="steps",
            save_steps=1000,
        )
        seen = _Seen(model, stop_at)
        trainer.add_callback(seen)
        trainer.train(resume_from_checkpoint=resume)
        return seen, {name: value.clone() for name, value in model.state_dict().items()}

    whole, expected = trained("whole", None, resume=False)
    first, halfway = trained("parts", stop, resume=False)
    second, found = trained("parts", None, resume=True)
    assert first.batches + second.batches == whole.batches
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    assert any(not torch.equal(halfway[name], value) for name, value in expected.items())


@pytest.mark.parametrize("batching", ["random", "length", "tokens"])
def test_an_epoch_has_as_many_steps_as_the_plan_says(tmp_path: Path, batching: str) -> None:
    tiny.write_splits(tmp_path)
    task = tiny.task(tmp_path, training={"batching": batching})
    splits = task.load(0)
    trainer = make_trainer(
        task,
        objective("plain", task.recipe),
        0,
        build_model(task, 0),
        splits,
        steps=1,
        nominal=1,
        folder=str(tmp_path),
    )
    loader = trainer.get_train_dataloader()
    assert type(trainer) is LengthBatchTrainer
    assert isinstance(splits.train, BatchedRows) is (batching != "random")
    assert len(loader) == task.batches_per_epoch(splits.train) == len(list(loader))
    rows = [tuple(row) for batch in loader for row in batch["labels"].tolist()]
    assert len(rows) == 48


def test_other_rows_are_trained_on_as_by_the_trainer_it_extends(tmp_path: Path) -> None:
    tiny.write_splits(tmp_path)
    task = tiny.task(tmp_path, training={"batching": "random"})
    splits, goal = task.load(0), objective("plain", task.recipe)
    kinds: list[type[RDropTrainer]] = [LengthBatchTrainer, RDropTrainer]
    found = []
    for kind in kinds:
        trainer = make_trainer(task, goal, 0, build_model(task, 0), splits, steps=1, nominal=1, folder=str(tmp_path))
        found.append([batch["input_ids"].tolist() for batch in kind.get_train_dataloader(trainer)])
    assert found[0] == found[1]
