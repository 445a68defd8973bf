r"""R-Drop in a plain loop on several processes, with DistributedDataParallel or FSDP2; saves, and goes on where it was.

One machine, two processes:

    torchrun --nproc-per-node 2 train_distributed.py --out runs/digits

Two machines, of which HOST is the first; N is 0 there and 1 on the other, and both see the folder runs:

    torchrun --nnodes 2 --node-rank N --master-addr HOST --master-port 29500 --nproc-per-node 2 \
        train_distributed.py --out runs/digits
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from rdrop import forward_passes, rdrop_loss

Batch = tuple[Tensor, Tensor]


def main() -> None:
    """Train, evaluate and save, epoch by epoch."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of the checkpoints, one for each epoch")
    parser.add_argument("--shard", action="store_true", help="FSDP2 in place of DistributedDataParallel")
    parser.add_argument("--alpha", type=float, default=1.0, help="weight of the divergence")
    parser.add_argument("--passes", type=int, default=2, help="1 is plain training")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--batch", type=int, default=16, help="rows of a micro-batch in one process")
    parser.add_argument("--accumulate", type=int, default=2, help="micro-batches of an optimizer step")
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()

    dist.init_process_group()
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if torch.cuda.is_available() else torch.device("cpu")
    images, labels = (torch.tensor(each) for each in load_digits(return_X_y=True))
    images, labels = images.float().to(device) / 16, labels.to(device)
    train, test = TensorDataset(images[:300], labels[:300]), (images[300:], labels[300:])
    sampler = DistributedSampler(train, seed=asked.seed)
    loader = DataLoader(train, batch_size=asked.batch, sampler=sampler)

    torch.manual_seed(asked.seed)  # the same weights in every process
    model = on_all_processes(network().to(device), shard=asked.shard)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for epoch in range(resume(model, optimizer, asked.out), asked.epochs):
        sampler.set_epoch(epoch)
        torch.manual_seed(hash((asked.seed, epoch, dist.get_rank())))  # masks that differ
        found = [step(model.train(), optimizer, each, asked) for each in groups(loader, asked.accumulate)]
        task_loss, divergence = torch.stack(found).mean(0).tolist()
        accuracy = evaluate(model.eval(), *test)
        save(model, optimizer, asked.out / f"epoch-{epoch + 1}")
        if dist.get_rank() == 0:
            print(f"epoch {epoch + 1}: {task_loss=:.4f} {divergence=:.4f} {accuracy=:.4f}", flush=True)
    dist.destroy_process_group()


def network() -> nn.Module:
    """Logits of ten digits."""
    return nn.Sequential(nn.Linear(64, 128), nn.LayerNorm(128), nn.ReLU(), nn.Dropout(0.3), nn.Linear(128, 10))


def on_all_processes(model: nn.Module, *, shard: bool) -> nn.Module:
    """The wrapped model. One forward for each backward goes through it: the passes are one doubled batch."""
    if not shard:
        return DistributedDataParallel(model)
    for layer in model.children():
        fully_shard(layer)
    return fully_shard(model)


def groups(loader: DataLoader[Any], size: int) -> Iterator[list[Batch]]:
    """The micro-batches of each optimizer step."""
    batches = list(loader)
    yield from (batches[first : first + size] for first in range(0, len(batches), size))


def step(model: nn.Module, optimizer: torch.optim.Optimizer, batches: list[Batch], asked: argparse.Namespace) -> Tensor:
    """One optimizer step on the micro-batches of all processes; its task loss and divergence."""
    # A mean over the labels of all of them. Gradients are averaged over processes: each divides by its share.
    count = torch.stack([(labels != -100).sum() for _, labels in batches]).sum().float()
    dist.all_reduce(count)
    count /= dist.get_world_size()
    terms = []
    for number, (inputs, labels) in enumerate(batches, start=1):
        last = number == len(batches)  # gradients are averaged once a step
        if isinstance(model, FSDPModule):
            model.set_requires_gradient_sync(last)
        else:
            model.require_backward_grad_sync = last
        logits = forward_passes(model, inputs, passes=asked.passes)
        out = rdrop_loss(logits, labels, alpha=asked.alpha, normalizer=count)
        out.loss.backward()
        terms.append(torch.stack([out.task_loss, out.divergence]).detach())
    optimizer.step()
    optimizer.zero_grad()
    total = torch.stack(terms).sum(0)
    dist.all_reduce(total)
    return total / dist.get_world_size()


@torch.no_grad()
def evaluate(model: nn.Module, inputs: Tensor, labels: Tensor) -> float:
    """Accuracy, of one pass without dropout, each process with its part."""
    mine = slice(dist.get_rank(), None, dist.get_world_size())
    right = (model(inputs[mine]).argmax(-1) == labels[mine]).sum()
    dist.all_reduce(right)
    return right.item() / len(labels)


def save(model: nn.Module, optimizer: torch.optim.Optimizer, folder: Path) -> None:
    """Every process writes the shards that it has."""
    weights, moments = get_state_dict(model, optimizer)
    dcp.save({"model": weights, "optimizer": moments}, checkpoint_id=folder)


def resume(model: nn.Module, optimizer: torch.optim.Optimizer, folder: Path) -> int:
    """Load the last whole checkpoint, if there is one: the epochs that are done.

    Load none but your own: the index of torch's distributed checkpoints is a pickle.
    """
    found = folder.glob("epoch-*/.metadata")  # which is written last
    done = max((int(path.parent.name.removeprefix("epoch-")) for path in found), default=0)
    if done:
        weights, moments = get_state_dict(model, optimizer)
        state = {"model": weights, "optimizer": moments}
        dcp.load(state, checkpoint_id=folder / f"epoch-{done}")
        set_state_dict(model, optimizer, model_state_dict=state["model"], optim_state_dict=state["optimizer"])
    return done


if __name__ == "__main__":
    main()
