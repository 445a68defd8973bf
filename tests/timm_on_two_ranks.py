"""A timm task on one or on two ranks; a module of its own, because a new process has to import it by name."""

from __future__ import annotations

import os
import runpy
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from timm.task import ClassificationTask
from torch import Tensor, nn

from rdrop.integrations.timm import RDropConfig, RDropTask
from tagging import B, C, DropoutByRow, T

RANKS, WIDTH = 2, 4
SCRIPT = Path(__file__).parents[1] / "examples" / "train_timm.py"


class Classifier(nn.Module):
    """Rows of values to classes; the first value of a row is its number."""

    def __init__(self, passes: int = 2) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.trunk = nn.Linear(WIDTH, WIDTH)
        self.dropout = DropoutByRow(WIDTH, passes, together=False)
        self.head = nn.Linear(T * WIDTH, C)
        self.seen: list[tuple[int, bool]] = []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append((len(x), self.training))
        self.dropout.rows = x[:, 0].long()
        hidden = self.dropout(self.trunk(x[:, 1:].view(-1, T, WIDTH)).tanh())
        out: Tensor = self.head(hidden.flatten(1))
        return out


def rows() -> tuple[Tensor, Tensor]:
    """Values and class ids."""
    generator = torch.Generator().manual_seed(2)
    x = torch.cat([torch.arange(B)[:, None], torch.randn(B, T * WIDTH, generator=generator)], dim=1)
    return x, torch.randint(C, (B,), generator=generator)


def train(task: ClassificationTask, x: Tensor, target: Tensor, steps: int = 3, micro_batches: int = 1) -> None:
    """As timm's training script does it: SGD, every step on all rows; the loss is divided in place."""
    module: Any = task.get_trainable_module()
    optimizer = torch.optim.SGD(module.parameters(), lr=0.5)
    module.train()
    for step in range(steps):
        parts = list(zip(x.chunk(micro_batches), target.chunk(micro_batches), strict=True))
        for index, (some, wanted) in enumerate(parts):

            def forward(some: Tensor = some, wanted: Tensor = wanted) -> None:
                loss = task(some, wanted)["loss"]
                loss /= micro_batches
                loss.backward()

            if index + 1 < micro_batches:
                with task.no_sync():  # type: ignore[no-untyped-call]
                    forward()
            else:
                forward()
        optimizer.step()
        optimizer.zero_grad()
        task.update_ema(step=step + 1)


def worker(rank: int, store: str, port: int, pictures: str) -> None:
    """One rank of two: half of the rows in two micro-batches; then the script on pictures."""
    torch.set_num_threads(1)
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": RANKS, "MASTER_ADDR": "localhost", "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in place.items()})
    # By a file: a second group on the port of the first may meet what is left of that one, and wait for ever.
    torch.distributed.init_process_group("gloo", init_method=f"file://{store}-group", rank=rank, world_size=RANKS)
    model = Classifier()
    config = RDropConfig(alpha=2.0, strategy="sequential")
    task = RDropTask(model, nn.CrossEntropyLoss(), rdrop=config).prepare_distributed()
    x, target = (part.chunk(RANKS)[rank] for part in rows())
    train(task, x, target, micro_batches=2)
    save_file(model.state_dict(), Path(f"{store}-{rank}"))
    torch.distributed.destroy_process_group()

    words = ["--model", "test_resnet", "--img-size", "32", "--batch-size", "4", "--grad-accum-steps", "2"]
    words += ["--epochs", "1", "--workers", "0", "--device", "cpu", "--output", f"{store}-output"]
    accuracy = runpy.run_path(str(SCRIPT))["main"]([pictures, *words])
    save_file({"accuracy": torch.tensor(accuracy)}, Path(f"{store}-accuracy-{rank}"))
