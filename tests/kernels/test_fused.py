"""The fused implementation: what it allocates, how it cuts, what `auto` says of it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from rdrop import rdrop_loss
from rdrop.kernels import available, choose, fused


class LargestTensors(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Collects the sizes of the tensors with memory of their own that operations return."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.sizes: list[int] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        given = {x.untyped_storage().data_ptr() for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)}
        for x in tree_leaves(out):
            if isinstance(x, Tensor) and x.untyped_storage().data_ptr() not in given:
                self.sizes.append(x.numel() * x.element_size())
        return out


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


def gradients(function: Any, logits: Tensor) -> list[Tensor]:
    """The gradient of a loss, from both implementations."""
    found = []
    for impl in ("reference", "fused"):
        z = logits.detach().requires_grad_()
        found.append(
            torch.autograd.grad(function(rdrop_loss(z, torch.tensor([0, 3, -100]), alpha=0.3, impl=impl)), z)[0]
        )
    return found


@pytest.mark.parametrize(
    "function",
    [
        lambda out: out.loss,
        lambda out: 65536 * out.loss,
        lambda out: out.loss / 7 - 3 * out.loss,
        lambda out: 0 * out.loss,
        lambda out: out.loss.square(),
        lambda out: out.task_loss,
        lambda out: out.divergence,
        lambda out: out.task_loss + 5 * out.divergence,
        lambda out: out.loss + 1e-3 * out.divergence,
    ],
)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_gradient_that_was_prepared_is_used_only_if_it_is_right(function: Any, dtype: torch.dtype) -> None:
    """Forward prepares for `loss.backward()`; whatever else is asked of the terms must come out right all the same."""
    logits = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0), dtype=dtype)
    reference, found = gradients(function, logits)
    torch.testing.assert_close(found, reference, rtol=1e-5, atol=1e-6 * reference.abs().max().item())


def test_a_prepared_gradient_is_handed_out_once() -> None:
    """Twice through the same graph gives twice the gradient, not a reused buffer."""
    logits = torch.randn(2, 3, 4, requires_grad=True)
    loss = rdrop_loss(logits, torch.tensor([0, 3, 1]), impl="fused").loss
    loss.backward(retain_graph=True)  # type: ignore[no-untyped-call]
    assert logits.grad is not None
    once = logits.grad.clone()
    loss.backward()  # type: ignore[no-untyped-call]
    torch.testing.assert_close(logits.grad, 2 * once)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_gradient_is_made_in_one_walk(dtype: torch.dtype) -> None:
    """Of a mean, forward has written the gradient already; backward makes nothing of the logits' size."""
    logits = torch.randn(2, 64, 50, dtype=dtype, requires_grad=True)
    loss = rdrop_loss(logits, torch.randint(50, (64,)), alpha=0.37, impl="fused").loss
    with LargestTensors() as made:
        loss.backward()  # type: ignore[no-untyped-call]
    assert max(made.sizes) < logits.numel()
    with torch.no_grad(), LargestTensors() as made:
        rdrop_loss(torch.randn(2, 640, 5000), torch.randint(50, (640,)), impl="fused")
    assert max(made.sizes[1:]) <= 4 * fused.CHUNK["cpu"]  # nothing to differentiate: nothing is prepared


@pytest.mark.parametrize("divergence", ["symmetric_kl", "kl", "js", "mse"])
def test_second_derivatives_are_autograds(divergence: Any) -> None:
    """A gradient penalty on top of the loss must not lose its own gradient silently."""
    logits = torch.randn(2, 3, 4, dtype=torch.float64, requires_grad=True)
    labels = torch.tensor([0, 3, -100])

    def terms(z: Tensor) -> Any:
        return rdrop_loss(z, labels, divergence=divergence, impl="fused")[:]

    assert torch.autograd.gradgradcheck(terms, logits)


def test_the_choice_is_told() -> None:
    assert choose("auto").name == "fused"
    assert "row chunks" in choose("auto").reason
    assert choose("reference") == ("reference", "asked for by name")
    wants = torch.zeros(3, requires_grad=True)
    assert choose("auto", labels=wants) == ("reference", "labels require a gradient, which only autograd has")
    assert set(available()) == {"reference", "fused", "native", "triton"}
