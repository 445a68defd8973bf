"""Running statistics on one of two ranks; a module of its own, because a new process has to import it by name."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from rdrop import forward_passes

RANKS, STEPS = 2, 2
KINDS = ("ddp", "fsdp")


def model() -> nn.Sequential:
    """The same in every process; the statistics lie below dropout, so that one plain forward has the same."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 2))


def rows(rank: int, step: int) -> Tensor:
    """The rows of a rank in a step."""
    return torch.randn(5, 6, generator=torch.Generator().manual_seed(10 * rank + step))


def worker(rank: int, store: str) -> None:
    """Statistics after two passes in each of two steps, whose weights do not move."""
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=RANKS)
    try:
        found = {}
        for kind in KINDS:
            plain = model()
            mesh = init_device_mesh("cpu", (RANKS,))
            wrapped: nn.Module
            wrapped = DistributedDataParallel(plain) if kind == "ddp" else plain
            if kind == "fsdp":
                fully_shard(plain, mesh=mesh)
            for step in range(STEPS):
                forward_passes(wrapped, rows(rank, step)).square().mean().backward()
            found[kind] = {name: buffer.clone() for name, buffer in plain.named_buffers()}
        torch.save(found, f"{store}-{rank}")
    finally:
        dist.destroy_process_group()
