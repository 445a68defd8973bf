"""Every place where people train, as functions with one signature, for the contract suite of hosts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader
from transformers import TrainingArguments

from lightning_host import train_with_lightning
from rdrop import forward_passes, rdrop_loss
from rdrop.integrations.transformers import RDropConfig, RDropTrainer
from rdrop.passes import Strategy
from tagging import B, Tagger, sentences


class Job(NamedTuple):
    """What a host is asked to do: SGD without momentum or decay, every step on all sentences."""

    steps: int = 3
    rate: float = 0.5
    passes: int = 2
    alpha: float = 2.0
    micro_batches: int = 1
    label_smoothing: float = 0.0
    strategy: Strategy = "sequential"
    ranks: int = 1

    @property
    def rows(self) -> int:
        """Of a micro-batch in one process."""
        return B // self.micro_batches // self.ranks


def batch() -> dict[str, Tensor]:
    """All sentences."""
    return {name: torch.stack([row[name] for row in sentences()]) for name in sentences(1)[0]}


def evaluated(model: Callable[..., Any], job: Job) -> float:
    """The loss of one pass over all sentences, of a model in evaluation mode."""
    inputs: dict[str, Any] = batch()
    labels = inputs.pop("labels")
    with torch.no_grad():
        return rdrop_loss(model(**inputs)["logits"][None], labels, label_smoothing=job.label_smoothing).loss.item()


def train_in_a_loop(model: Tagger, job: Job, folder: Path) -> float:
    """The README's loop, with accumulation; of several processes with DistributedDataParallel."""
    _join(job)
    network = DistributedDataParallel(model) if job.ranks > 1 else model
    return _loop(network, job)


def train_sharded(model: Tagger, job: Job, folder: Path) -> float:
    """The same loop with FSDP2."""
    _join(job)
    fully_shard(model.head)
    fully_shard(model)
    return _loop(model, job)


def _join(job: Job) -> None:
    """What the other hosts do by themselves."""
    if job.ranks > 1:
        dist.init_process_group("gloo")


def _loop(model: nn.Module, job: Job) -> float:
    inputs: dict[str, Any] = batch()
    labels = inputs.pop("labels")
    # Gradients are averaged over processes, so each divides by its share of the count of all.
    count = (labels != -100).sum() / job.ranks
    rank = dist.get_rank() if job.ranks > 1 else 0
    optimizer = torch.optim.SGD(model.parameters(), lr=job.rate)
    for _ in range(job.steps):
        for first in range(rank * job.rows, B, job.rows * job.ranks):
            last = first + job.rows * job.ranks >= B
            if isinstance(model, DistributedDataParallel):
                model.require_backward_grad_sync = last
            if isinstance(model, FSDPModule):
                model.set_requires_gradient_sync(last)
            part = slice(first, first + job.rows)
            some = {name: value[part] for name, value in inputs.items()}
            logits = forward_passes(model, **some, passes=job.passes, strategy=job.strategy)["logits"]
            options: Any = {"normalizer": count, "label_smoothing": job.label_smoothing}
            rdrop_loss(logits, labels[part], alpha=job.alpha, **options).loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()
    return evaluated(model.eval(), job)


def train_with_accelerate(model: Tagger, job: Job, folder: Path) -> float:
    """A loop in the manner of accelerate."""
    AcceleratorState._reset_state(reset_partial_state=True)  # of whoever was here before
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=job.micro_batches)
    rows: Any = sentences()
    network, optimizer, loader = accelerator.prepare(
        model, torch.optim.SGD(model.parameters(), lr=job.rate), DataLoader(rows, batch_size=job.rows)
    )
    # `backward` divides by the number of micro-batches, and gradients are averaged over processes.
    count = (batch()["labels"] != -100).sum() / (accelerator.num_processes * accelerator.gradient_accumulation_steps)
    for _ in range(job.steps):
        for some in loader:
            with accelerator.accumulate(network):
                labels = some.pop("labels")
                logits = forward_passes(network, **some, passes=job.passes, strategy=job.strategy)["logits"]
                options: Any = {"normalizer": count, "label_smoothing": job.label_smoothing}
                accelerator.backward(rdrop_loss(logits, labels, alpha=job.alpha, **options).loss)
                optimizer.step()
                optimizer.zero_grad()
    return evaluated(network.eval(), job)


def train_with_transformers(model: Tagger, job: Job, folder: Path) -> float:
    """`RDropTrainer`."""
    arguments = TrainingArguments(
        str(folder),
        per_device_train_batch_size=job.rows,
        per_device_eval_batch_size=B,
        gradient_accumulation_steps=job.micro_batches,
        max_steps=job.steps,
        learning_rate=job.rate,
        lr_scheduler_type="constant",
        optim="sgd",
        max_grad_norm=0.0,
        label_smoothing_factor=job.label_smoothing,
        report_to="none",
        save_strategy="no",
        use_cpu=True,
        dataloader_pin_memory=False,
        disable_tqdm=True,
    )
    rows: Any = sentences()
    rdrop = RDropConfig(alpha=job.alpha, passes=job.passes, strategy=job.strategy)
    trainer = RDropTrainer(model, arguments, rdrop=rdrop, train_dataset=rows)
    trainer.train()
    if job.ranks > 1:  # the Trainer's evaluation takes a mean over processes that do not have the same number of labels
        return evaluated(model.eval(), job)
    return float(trainer.evaluate(rows)["eval_loss"])


HOSTS: dict[str, Callable[[Tagger, Job, Path], float]] = {
    "torch": train_in_a_loop,
    "accelerate": train_with_accelerate,
    "transformers": train_with_transformers,
    "Lightning": train_with_lightning,
}
SHARDED: dict[str, Callable[[Tagger, Job, Path], float]] = {"torch, FSDP2": train_sharded}
