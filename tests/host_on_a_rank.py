"""One of several processes in which hosts train; a module of its own, because a new process imports it by name."""

from __future__ import annotations

import os
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch.distributed.tensor import DTensor

from hosts import HOSTS, SHARDED, Job
from tagging import Tagger


def worker(rank: int, job: Job, folder: Path, ports: dict[str, int]) -> None:
    """Train with one host after the other, as the processes of a launcher do.

    For each, what is left is a file with the weights and the loss of an evaluation.
    """
    torch.set_num_threads(1)
    for host, port in ports.items():
        place = {
            "RANK": rank,
            "LOCAL_RANK": rank,
            "WORLD_SIZE": job.ranks,
            "LOCAL_WORLD_SIZE": job.ranks,
            "MASTER_ADDR": "localhost",
            "MASTER_PORT": port,
        }
        os.environ.update({name: str(value) for name, value in place.items()})
        model = Tagger(by_row=job.passes, together=job.strategy == "concat")
        loss = (HOSTS | SHARDED)[host](model, job, folder / f"{host} {rank}")
        assert dist.get_world_size() == job.ranks
        found = {name: w.full_tensor() if isinstance(w, DTensor) else w for name, w in model.state_dict().items()}
        save_file(found | {"loss": torch.tensor(loss, dtype=torch.float64)}, folder / f"{host} {rank}.safetensors")
        dist.destroy_process_group()
