"""One of two ranks; a module of its own, because a new process has to import it by name."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from rdrop import forward_passes, rdrop_loss

RANKS = 2


class Perturbed(nn.Module):
    """A model whose passes differ by a perturbation that belongs to the example, so that ranks cannot change it."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Linear(6, 5)

    def forward(self, x: Tensor, noise: Tensor) -> Tensor:
        first, second = torch.zeros_like(noise), noise
        doubled = len(x) // 2
        out: Tensor = self.layers(x + torch.cat((first[:doubled], second[doubled:])))
        return out


def batch() -> tuple[Tensor, Tensor, Tensor]:
    """Inputs, perturbations and labels of 9 examples, some of which do not count."""
    generator = torch.Generator().manual_seed(0)
    x, noise = torch.randn(2, 9, 6, generator=generator, dtype=torch.float64).unbind()
    labels = torch.randint(5, (9,), generator=generator)
    labels[[0, 1, 7]] = -100
    return x, noise, labels


def model() -> Perturbed:
    """The same weights in every process."""
    torch.manual_seed(0)
    return Perturbed().double()


def worker(rank: int, store: str) -> None:
    """One rank: an uneven part of the batch, in two micro-batches, normalised by the count of all ranks."""
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=RANKS)
    try:
        x, noise, labels = batch()
        wrapped = DistributedDataParallel(model())
        parts = [(slice(0, 2), slice(2, 4)), (slice(4, 6), slice(6, 9))][rank]
        # DistributedDataParallel averages over ranks, so the count of all of them is divided by their number.
        count = (labels != -100).sum() / RANKS
        for index, part in enumerate(parts):
            with wrapped.no_sync() if index == 0 else torch.enable_grad():
                logits = forward_passes(wrapped, x[part], noise[part], strategy="concat")
                rdrop_loss(logits, labels[part], alpha=2.0, normalizer=count).loss.backward()  # type: ignore[no-untyped-call]
        torch.save([p.grad for p in wrapped.module.parameters()], f"{store}-{rank}")
    finally:
        dist.destroy_process_group()
