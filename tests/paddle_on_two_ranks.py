"""One of two processes of PaddlePaddle, which train one network on a part of a batch each; a program of its own."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import paddle
from paddle import Tensor, nn

from rdrop.paddle import forward_passes, rdrop_loss

RANKS = 2


class Perturbed(nn.Layer):
    """A network whose passes differ by a perturbation that belongs to the example, so that ranks cannot change it."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Linear(6, 5)

    def forward(self, x: Tensor, noise: Tensor) -> Any:
        rows = x.shape[0] // 2
        return self.layers(x + paddle.concat([paddle.zeros_like(noise[:rows]), noise[rows:]]))


def batch() -> tuple[Tensor, Tensor, Tensor]:
    """Inputs, perturbations and labels of 9 examples, some of which do not count."""
    x, noise = np.random.default_rng(0).normal(size=(2, 9, 6))
    labels = np.array([-100, -100, 1, 2, 3, 0, 4, -100, 1])
    return paddle.to_tensor(x), paddle.to_tensor(noise), paddle.to_tensor(labels)


def network() -> Perturbed:
    """The same weights in every process."""
    paddle.seed(0)
    return Perturbed().to(dtype="float64")


def main(folder: str) -> None:
    """One rank: an uneven part of the batch, in two micro-batches, normalised by the count of all ranks."""
    paddle.distributed.init_parallel_env()
    rank = paddle.distributed.get_rank()
    x, noise, labels = batch()
    model: Any = network()
    wrapped = paddle.DataParallel(model)
    # DataParallel averages over ranks, so the count of all of them is divided by their number.
    count = float((labels != -100).sum()) / RANKS
    first, second = [(slice(0, 2), slice(2, 4)), (slice(4, 6), slice(6, 9))][rank]
    with wrapped.no_sync():
        logits = forward_passes(wrapped, x[first], noise[first])
        rdrop_loss(logits, labels[first], alpha=2.0, normalizer=count).loss.backward()
    logits = forward_passes(wrapped, x[second], noise[second])
    rdrop_loss(logits, labels[second], alpha=2.0, normalizer=count).loss.backward()
    np.save(f"{folder}/{rank}.npy", model.layers.weight.grad.numpy())


if __name__ == "__main__":
    main(sys.argv[1])
