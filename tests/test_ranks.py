"""Two real processes under DistributedDataParallel have the gradient of one process with the whole batch."""

from __future__ import annotations

from pathlib import Path

import torch
from torch.multiprocessing.spawn import spawn

from rdrop import rdrop_loss
from two_ranks import RANKS, batch, model, worker


def test_gradients_of_ranks_and_micro_batches_are_those_of_the_one_big_batch(tmp_path: Path) -> None:
    store = str(tmp_path / "store")
    spawn(worker, args=(store,), nprocs=RANKS)  # type: ignore[no-untyped-call]
    whole, (x, noise, labels) = model(), batch()
    out = rdrop_loss(torch.stack((whole.layers(x), whole.layers(x + noise))), labels, alpha=2.0)
    out.loss.backward()  # type: ignore[no-untyped-call]
    assert out.divergence > 0
    for rank in range(RANKS):
        gradients = torch.load(f"{store}-{rank}", weights_only=True)
        for found, parameter in zip(gradients, whole.parameters(), strict=True):
            torch.testing.assert_close(found, parameter.grad, rtol=1e-12, atol=1e-14)
