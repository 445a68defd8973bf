"""A pair trained on one or on two ranks; a module of its own, because a new process has to import it by name."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import TrainingArguments

from rdrop.integrations.transformers import RDropConfig
from rdrop.toolkit.images.network_pair import NetworkPair, PairTrainer

RANKS, ROWS = 2, 12


class Named(nn.Module):
    """A network in the manner of transformers: inputs by name, a dictionary as answer."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 5))

    def forward(self, pixel_values: Tensor) -> dict[str, Tensor]:
        return {"logits": self.layers(pixel_values)}


def pair() -> NetworkPair:
    """The same weights in every process."""
    torch.manual_seed(0)
    return NetworkPair(nn.Linear(6, 5), Named())


def rows() -> list[dict[str, Tensor]]:
    """Examples of five classes, some of which do not count."""
    generator = torch.Generator().manual_seed(1)
    images, labels = torch.randn(ROWS, 6, generator=generator), torch.randint(5, (ROWS,), generator=generator)
    labels[[0, 1, 7]] = -100
    return [{"pixel_values": image, "labels": label} for image, label in zip(images, labels, strict=True)]


def trained(folder: str, **options: Any) -> NetworkPair:
    """The pair after three steps of SGD, each over all rows."""
    arguments = TrainingArguments(
        folder,
        max_steps=3,
        learning_rate=0.5,
        lr_scheduler_type="constant",
        optim="sgd",
        max_grad_norm=0.0,
        remove_unused_columns=False,
        report_to="none",
        save_strategy="no",
        use_cpu=True,
        dataloader_pin_memory=False,
        disable_tqdm=True,
        **options,
    )
    model, data = pair(), rows()
    dataset: Any = data
    PairTrainer(model, arguments, rdrop=RDropConfig(alpha=2.0), train_dataset=dataset).train()
    return model


def worker(rank: int, store: str, port: int) -> None:
    """One rank of two, with half of the rows in two micro-batches."""
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": RANKS, "MASTER_ADDR": "localhost", "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in place.items()})
    model = trained(store, per_device_train_batch_size=ROWS // RANKS // 2, gradient_accumulation_steps=2)
    assert dist.get_world_size() == RANKS
    save_file(model.state_dict(), Path(f"{store}-{rank}"))
    dist.destroy_process_group()
