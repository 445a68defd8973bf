"""How the cost of R-Drop grows: the loss with N, C and M, and a training step with the number of processes.

    python benchmarks/scaling.py [--rounds 9]

The loss: nanoseconds for each logit of forward and backward of `rdrop_loss`, as `auto` runs it. A cost that is linear
shows the same number everywhere. Processes: one and two on this machine (DistributedDataParallel over gloo, one thread
each), with the same batch for each; throughput is that of two over that of one.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import spawn
from torch.nn.parallel import DistributedDataParallel

import rdrop
from passes import Encoder, sentences
from rdrop.toolkit.environment import machine


def nanoseconds(M: int, N: int, C: int, rounds: int) -> list[float]:
    """Of each logit, in each round."""
    logits, labels = 3 * torch.randn(M, N, C), torch.randint(C, (N,))

    def step() -> None:
        rdrop.rdrop_loss(logits.detach().requires_grad_(), labels).loss.backward()  # type: ignore[no-untyped-call]

    return [1e9 * seconds / logits.numel() for seconds in timed(step, rounds)]


def timed(step: Callable[[], None], rounds: int) -> list[float]:
    """Seconds of each round, after two that allocate and decide."""
    times = []
    for _ in range(rounds + 2):
        start = time.perf_counter()
        step()
        times.append(time.perf_counter() - start)
    return times[2:]


def training_step(rank: int, ranks: int, folder: str, rounds: int) -> None:
    """Steps of one process of several; the first one writes down the seconds of a step."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store-{ranks}", rank=rank, world_size=ranks)
    try:
        model = DistributedDataParallel(Encoder(frozen=False))
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
        ids, labels = sentences("cpu")

        def step() -> None:
            optimizer.zero_grad()
            logits = rdrop.forward_passes(model, ids, strategy="concat")
            rdrop.rdrop_loss(logits, labels).loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()

        times = timed(step, rounds)
        if rank == 0:
            Path(folder, f"seconds-{ranks}").write_text(str(statistics.median(times)))
    finally:
        dist.destroy_process_group()


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    print(f"{machine()}; torch {torch.__version__}, {torch.get_num_threads()} threads, {options.rounds} rounds")
    print(f"{'M':>4}{'N':>8}{'C':>9}{'ns a logit':>12}{'spread':>18}")
    sizes = [(2, N, 1000) for N in (16, 128, 1024, 8192)]
    sizes += [(2, max(1, 2**20 // C), C) for C in (2, 10, 100, 10_000, 100_000)]
    sizes += [(M, 1024, 1000) for M in (1, 3, 4, 8, 16)]
    for M, N, C in sizes:
        found = nanoseconds(M, N, C, options.rounds)
        spread = f"{min(found):.3f} .. {max(found):.3f}"
        print(f"{M:4}{N:8}{C:9}{statistics.median(found):12.3f}{spread:>18}")
    seconds = {}
    with tempfile.TemporaryDirectory() as folder:
        for ranks in (1, 2):
            spawn(training_step, args=(ranks, folder, options.rounds), nprocs=ranks)  # type: ignore[no-untyped-call]
            seconds[ranks] = float(Path(folder, f"seconds-{ranks}").read_text())
    print(f"two processes: {2 * seconds[1] / seconds[2]:.2f} of the throughput of one")


if __name__ == "__main__":
    main()
