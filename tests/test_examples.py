"""The programs in `examples/` run as they are, in processes of their own."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"
Word = str | Path | int
TORCHRUN: list[Word] = [sys.executable, "-m", "torch.distributed.run", "--master-port"]


def start(*words: Word) -> subprocess.Popen[str]:
    """A program, with what it prints."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.Popen([str(word) for word in words], env=environment, stdout=subprocess.PIPE, text=True)


def lines(process: subprocess.Popen[str]) -> list[str]:
    """What it has printed, when it has ended well."""
    printed, _ = process.communicate(timeout=240)
    assert process.returncode == 0
    return printed.splitlines()


@pytest.mark.shows("torch", "processes", "sharded", "resume")
def test_two_machines_and_a_resumed_training_are_one_machine_and_an_uninterrupted_one(
    tmp_path: Path, free_port: int
) -> None:
    program = EXAMPLES / "train_distributed.py"
    one = start(*TORCHRUN, free_port, "--nproc-per-node", 2, program, "--out", tmp_path / "one", "--epochs", 3)
    expected = lines(one)
    assert [line.split(":")[0] for line in expected] == ["epoch 1", "epoch 2", "epoch 3"]

    # Two nodes at addresses of their own, which share the folder; the weights are sharded over them.
    sharded: list[Word] = [program, "--out", tmp_path / "two", "--shard", "--epochs"]
    node: list[Word] = [*TORCHRUN, free_port, "--master-addr", "127.0.0.1", "--nnodes", 2, "--nproc-per-node", 1]
    nodes = [start(*node, "--node-rank", rank, "--local-addr", f"127.0.0.{1 + rank}", *sharded, 2) for rank in range(2)]
    first, second = (lines(node) for node in nodes)
    assert first == expected[:2]
    assert second == []

    # A checkpoint that is not whole is passed over; weights and moments of the others are those of the sharded run.
    shutil.copytree(tmp_path / "two" / "epoch-2", tmp_path / "two" / "epoch-3")
    (tmp_path / "two" / "epoch-3" / ".metadata").unlink()
    assert lines(start(*TORCHRUN, free_port, "--nproc-per-node", 2, *sharded, 3)) == expected[2:]
