"""The fused implementation: what it allocates, how it cuts, what `auto` says of it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from allocations import LargestTensors
from rdrop import rdrop_loss
from rdrop.kernels import available, choose, fused, native
from rdrop.options import Objective


def big_tensors(impl: Any, logits: Tensor, labels: Tensor, **options: Any) -> int:
    """How many tensors of at least a quarter of the logits' size one step makes."""
    with LargestTensors() as made:
        rdrop_loss(logits, labels, impl=impl, **options).loss.backward()  # type: ignore[no-untyped-call]
    return sum(size >= logits.numel() * logits.element_size() // 4 for size in made.sizes)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("divergence", ["symmetric_kl", "kl", "js", "mse"])
def test_the_gradient_is_the_only_full_size_tensor(
    divergence: Any, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(fused.CHUNK, "cpu", 4000)
    logits = torch.randn(2, 64, 500).to(dtype).requires_grad_()
    labels = torch.randint(500, (64,))
    labels[:9] = -100
    assert big_tensors("fused", logits, labels, divergence=divergence, label_smoothing=0.1) == 1
    assert big_tensors("reference", logits, labels, divergence=divergence) > 5


@pytest.mark.parametrize("kind", ["binary", "regression"])
def test_the_other_kinds_are_as_lean(kind: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(fused.CHUNK, "cpu", 200)
    logits = torch.randn(2, 64, 50, requires_grad=True)
    labels = torch.randint(2, (64, 50)).float()
    # Per label and term one value is kept, half as many as there are logits: the two terms, and their gradients.
    assert big_tensors("fused", logits, labels, kind=kind) <= 7
    assert big_tensors("reference", logits, labels, kind=kind) > 10


@pytest.mark.parametrize("chunk", [1, 7, 64, 10**6])
@pytest.mark.parametrize("kind", ["categorical", "binary", "regression"])
def test_the_cut_does_not_show(chunk: int, kind: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 5, 4, 3, dtype=torch.float64, generator=generator, requires_grad=True)
    shape = (5, 4) if kind == "categorical" else (5, 4, 3)
    labels = torch.randint(2, shape, generator=generator)
    expected = rdrop_loss(logits, labels, kind=kind, impl="reference")
    monkeypatch.setitem(fused.CHUNK, "cpu", chunk)
    found = rdrop_loss(logits, labels, kind=kind, impl="fused")
    torch.testing.assert_close(tuple(found), tuple(expected))
    for got, want in zip(found, expected, strict=True):
        torch.testing.assert_close(*(torch.autograd.grad(x, logits, retain_graph=True)[0] for x in (got, want)))


def test_the_choice_is_told() -> None:
    double = choose("auto", torch.zeros(2, 3, 4).double())
    assert double.name == "fused"
    assert "row chunks" in double.reason
    assert "the logits are torch.float64" in double.reason
    assert choose("auto", torch.zeros(2, 3, 4)).name == ("fused" if native.refusal() else "native")
    assert choose("auto", torch.zeros(2, 3), objective=Objective("regression")).name == "fused"
    assert choose("reference") == ("reference", "asked for by name")
    wants = torch.zeros(3, requires_grad=True)
    assert choose("auto", labels=wants) == ("reference", "labels require a gradient, which only autograd has")
    assert set(available()) == {"reference", "fused", "native", "triton"}
