"""Lightning as a host."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader

from rdrop.integrations.lightning import RDropCallback, RDropConfig
from tagging import B, Tagger, sentences

if TYPE_CHECKING:
    from hosts import Job

QUIET: dict[str, Any] = {
    "accelerator": "cpu",
    "enable_checkpointing": False,
    "enable_model_summary": False,
    "enable_progress_bar": False,
    "logger": False,
}


class Tagging(LightningModule):
    """A LightningModule as people write them, of a tagger whose loss is a sum over a count of labels."""

    def __init__(self, model: nn.Module, rate: float, count: float, label_smoothing: float = 0.0) -> None:
        super().__init__()
        self.model = model
        self.rate, self.count, self.label_smoothing = rate, count, label_smoothing

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        return self.sum_of_losses(batch) / self.count

    def test_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        self.log("test_loss", self.sum_of_losses(batch) / (batch["labels"] != -100).sum(), batch_size=B)

    def sum_of_losses(self, batch: dict[str, Tensor]) -> Tensor:
        logits = self.model(batch["words"], batch["row"])["logits"]
        smoothing = self.label_smoothing
        return cross_entropy(
            logits.flatten(0, 1), batch["labels"].flatten(), reduction="sum", label_smoothing=smoothing
        )

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=self.rate)


def train_with_lightning(model: Tagger, job: Job, folder: Path) -> float:
    """`RDropCallback`; of several processes with Lightning's DistributedDataParallel."""
    from hosts import evaluated

    rows: Any = sentences()
    # Lightning divides by the number of micro-batches, and gradients are averaged over processes.
    count = sum(int((row["labels"] != -100).sum()) for row in rows) / (job.micro_batches * job.ranks)
    module = Tagging(model, job.rate, count, job.label_smoothing)
    rdrop = RDropConfig(alpha=job.alpha, passes=job.passes, strategy=job.strategy)
    trainer = Trainer(
        callbacks=[RDropCallback(rdrop, labels="labels", normalizer=count)],
        max_steps=job.steps,
        accumulate_grad_batches=job.micro_batches,
        devices=job.ranks,
        strategy="ddp" if job.ranks > 1 else "auto",
        default_root_dir=folder,
        **QUIET,
    )
    trainer.fit(module, DataLoader(rows, batch_size=job.rows))
    if job.ranks > 1:  # Lightning's own is of the rows of one process
        return evaluated(model.eval(), job)
    (found,) = trainer.test(module, DataLoader(rows, batch_size=B), verbose=False)
    return float(found["test_loss"])
