"""Every place where people train, as functions with one signature, for the contract suite of hosts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import TrainingArguments

from rdrop import forward_passes, rdrop_loss
from rdrop.integrations.transformers import RDropConfig, RDropTrainer
from tagging import B, Tagger, sentences


class Job(NamedTuple):
    """What a host is asked to do: SGD without momentum or decay, every step on all sentences."""

    steps: int = 3
    rate: float = 0.5
    passes: int = 2
    alpha: float = 2.0
    micro_batches: int = 1
    label_smoothing: float = 0.0


def train_in_a_loop(model: Tagger, job: Job, folder: Path) -> float:
    """The README's loop, with accumulation; returns the loss of an evaluation on the same sentences."""
    inputs: dict[str, Any] = {name: torch.stack([row[name] for row in sentences()]) for name in sentences(1)[0]}
    labels = inputs.pop("labels")
    count = (labels != -100).sum()
    optimizer = torch.optim.SGD(model.parameters(), lr=job.rate)
    size = B // job.micro_batches
    for _ in range(job.steps):
        for part in (slice(first, first + size) for first in range(0, B, size)):
            some = {name: value[part] for name, value in inputs.items()}
            logits = forward_passes(model, **some, passes=job.passes, strategy="sequential")["logits"]
            options: Any = {"normalizer": count, "label_smoothing": job.label_smoothing}
            rdrop_loss(logits, labels[part], alpha=job.alpha, **options).loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()
    model.eval()
    with torch.no_grad():
        logits = forward_passes(model, **inputs, passes=1)["logits"]
        return rdrop_loss(logits, labels, label_smoothing=job.label_smoothing).loss.item()


def train_with_transformers(model: Tagger, job: Job, folder: Path) -> float:
    """`RDropTrainer`."""
    arguments = TrainingArguments(
        str(folder),
        per_device_train_batch_size=B // job.micro_batches,
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
    rdrop = RDropConfig(alpha=job.alpha, passes=job.passes, strategy="sequential")
    trainer = RDropTrainer(model, arguments, rdrop=rdrop, train_dataset=rows)
    trainer.train()
    return float(trainer.evaluate(rows)["eval_loss"])


HOSTS: dict[str, Callable[[Tagger, Job, Path], float]] = {
    "loop": train_in_a_loop,
    "transformers": train_with_transformers,
}
