"""Passes and objective in a loop of accelerate."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import nn

from rdrop import forward_passes, rdrop_loss
from rdrop.passes import Strategy


@pytest.fixture
def in_half() -> Iterator[Accelerator]:
    """It remembers its precision for the whole process."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield Accelerator(cpu=True, mixed_precision="bf16")
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.mark.parametrize("strategy", ["concat", "sequential", "shared"])
@pytest.mark.shows("accelerate", "mixed precision", "BatchNorm")
def test_under_mixed_precision_the_gradients_are_those_of_autocast(in_half: Accelerator, strategy: Strategy) -> None:
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Linear(6, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Dropout(0.5), nn.Linear(32, 4))
    model = in_half.prepare(copy.deepcopy(plain))
    x, labels = torch.randn(8, 6), torch.arange(8) % 4
    torch.manual_seed(1)
    logits = forward_passes(model, x, strategy=strategy)
    assert logits.dtype == torch.float32
    in_half.backward(rdrop_loss(logits, labels, alpha=2.0).loss)
    torch.manual_seed(1)
    with torch.autocast("cpu", torch.bfloat16):
        expected = forward_passes(plain, x, strategy=strategy)
    assert expected.dtype == torch.bfloat16
    rdrop_loss(expected.float(), labels, alpha=2.0).loss.backward()  # type: ignore[no-untyped-call]
    for found, weight in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(found.grad, weight.grad, rtol=1e-2, atol=1e-3)  # a digit of bfloat16
    torch.testing.assert_close(dict(model.named_buffers()), dict(plain.named_buffers()))
