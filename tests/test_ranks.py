"""Two real processes have the gradient of one process with the whole batch."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.multiprocessing.spawn import spawn

import linear_head_on_two_ranks
import norms_on_two_ranks
from rdrop import rdrop_loss
from two_ranks import RANKS, batch, model, worker


@pytest.mark.shows("torch", "processes", "accumulation")
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


@pytest.mark.shows("torch", "sharded")
def test_a_tied_weight_of_the_linear_head_has_the_gradient_of_one_process(tmp_path: Path) -> None:
    """Replicated (DDP), sharded and gathered (FSDP2), and sharded by hand."""
    store = str(tmp_path / "store")
    spawn(linear_head_on_two_ranks.worker, args=(store,), nprocs=RANKS)  # type: ignore[no-untyped-call]
    whole = linear_head_on_two_ranks.model()
    loss = linear_head_on_two_ranks.loss(whole, whole.head.weight, slice(None), 1.0)
    names, parameters = zip(*whole.named_parameters(), strict=True)
    want = dict(zip(names, torch.autograd.grad(loss, parameters), strict=True))
    weight = whole.head.weight.detach().clone().requires_grad_()
    (untied,) = torch.autograd.grad(linear_head_on_two_ranks.loss(whole, weight, slice(None), 1.0), weight)
    for rank in range(RANKS):
        found = torch.load(f"{store}-{rank}", weights_only=True)
        for name in names:
            for kind in ("ddp", "fsdp"):
                torch.testing.assert_close(found[kind][name], want[name], rtol=1e-12, atol=1e-14)
        torch.testing.assert_close(found["by hand"]["head"], untied, rtol=1e-12, atol=1e-14)


@pytest.mark.shows("torch", "BatchNorm", "sharded")
def test_running_statistics_move_once_in_a_step_as_in_plain_training(tmp_path: Path) -> None:
    """With DDP from those of the first rank, with FSDP2 from a rank's own."""
    store = str(tmp_path / "store")
    spawn(norms_on_two_ranks.worker, args=(store,), nprocs=RANKS)  # type: ignore[no-untyped-call]
    for rank in range(RANKS):
        found = torch.load(f"{store}-{rank}", weights_only=True)
        for kind in norms_on_two_ranks.KINDS:
            plain = norms_on_two_ranks.model()
            plain(norms_on_two_ranks.rows(0 if kind == "ddp" else rank, 0))
            plain(norms_on_two_ranks.rows(rank, 1))
            torch.testing.assert_close(found[kind], dict(plain.named_buffers()), rtol=1e-5, atol=1e-6)
