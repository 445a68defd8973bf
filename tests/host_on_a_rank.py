"""One of several processes in which a host trains; a module of its own, because a new process imports it by name."""

from __future__ import annotations

import os
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch.distributed.tensor import DTensor

from hosts import HOSTS, SHARDED, Job
from tagging import Tagger


def worker(rank: int, host: str, job: Job, folder: Path, port: int) -> None:
    """Train as the processes of a launcher do, and leave the weights and the loss of an evaluation."""
    place = {
        "RANK": rank,
        "LOCAL_RANK": rank,
        "WORLD_SIZE": job.ranks,
        "LOCAL_WORLD_SIZE": job.ranks,
        "MASTER_ADDR": "localhost",
        "MASTER_PORT": port,
    }
    os.environ.update({name: str(value) for name, value in place.items()})
    torch.set_num_threads(1)
    if host.startswith("torch"):
        dist.init_process_group("gloo")
    model = Tagger(by_row=job.passes, together=job.strategy == "concat")
    loss = (HOSTS | SHARDED)[host](model, job, folder / str(rank))
    assert dist.get_world_size() == job.ranks
    found = {name: w.full_tensor() if isinstance(w, DTensor) else w for name, w in model.state_dict().items()}
    save_file(found | {"loss": torch.tensor(loss, dtype=torch.float64)}, folder / f"{rank}.safetensors")
    dist.destroy_process_group()
