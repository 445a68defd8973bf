"""One of two ranks with a tied weight in the linear head; a module of its own, to be imported by name."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Shard, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from rdrop import linear_rdrop_loss

RANKS = 2
C, D, B, T = 11, 6, 8, 3


class Tied(nn.Module):
    """An embedding whose weight is that of the head too; gives hidden states of two passes."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(C, D)
        self.trunk = nn.Sequential(nn.Linear(D, D), nn.Tanh())
        self.head = nn.Linear(D, C, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, ids: Tensor, noise: Tensor) -> Tensor:
        hidden: Tensor = self.trunk(self.embedding(ids))
        return torch.stack((hidden, hidden + noise))


def batch() -> tuple[Tensor, Tensor, Tensor]:
    """Ids, perturbations of the second pass, labels."""
    generator = torch.Generator().manual_seed(0)
    ids, labels = torch.randint(C, (2, B, T), generator=generator).unbind()
    labels[:, 0] = -100
    return ids, torch.randn(B, T, D, generator=generator, dtype=torch.float64), labels


def model() -> Tied:
    """The same weights in every process."""
    torch.manual_seed(0)
    return Tied().double()


def loss(network: nn.Module, weight: Tensor, part: slice, share: float) -> Tensor:
    """That of a part of the batch, normalised by a share of the count of all."""
    ids, noise, labels = (x[part] for x in batch())
    count = share * (batch()[2] != -100).sum()
    return linear_rdrop_loss(network(ids, noise), weight, labels, alpha=2.0, normalizer=count).loss


def worker(rank: int, store: str) -> None:
    """Gradients of one rank, under DDP, under FSDP2, and with a head whose weight is sharded by hand."""
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=RANKS)
    part = slice(rank * B // RANKS, (rank + 1) * B // RANKS)
    try:
        found = {}
        wrapped = DistributedDataParallel(model())
        loss(wrapped, wrapped.module.head.weight, part, 1 / RANKS).backward()  # type: ignore[no-untyped-call]
        found["ddp"] = {name: p.grad for name, p in wrapped.module.named_parameters()}

        mesh = init_device_mesh("cpu", (RANKS,))
        sharded = model()
        fully_shard(sharded.trunk, mesh=mesh)
        fully_shard(sharded, mesh=mesh)
        loss(sharded, sharded.head.weight, part, 1 / RANKS).backward()  # type: ignore[no-untyped-call]
        found["fsdp"] = {name: whole(p.grad) for name, p in sharded.named_parameters()}

        plain = model()
        weight = nn.Parameter(distribute_tensor(plain.head.weight.detach(), mesh, [Shard(0)]))
        loss(plain, weight, slice(None), 1.0).backward()  # type: ignore[no-untyped-call]
        found["by hand"] = {"head": whole(weight.grad)}
        torch.save(found, f"{store}-{rank}")
    finally:
        dist.destroy_process_group()


def whole(gradient: Tensor | None) -> Tensor:
    """A gradient with what the other rank has of it."""
    assert isinstance(gradient, DTensor)
    found: Tensor = gradient.full_tensor()
    return found
