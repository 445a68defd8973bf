"""Kernels as autograd sees them: gradients made in forward, in the place of the logits, and differentiated again."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from allocations import LargestTensors
from exactness import views
from rdrop import RDropLoss, rdrop_loss
from rdrop.kernels import fused

LABELS = torch.tensor([0, 3, -100])
ALL = ["fused", "native", "triton"]
ONE_WALK = ["fused", "native"]


def small_logits(dtype: torch.dtype = torch.float32) -> Tensor:
    """Logits (2, 3, 4), three of them the inputs of LABELS."""
    return torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0), dtype=dtype)


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
@pytest.mark.parametrize(
    ("impl", "dtype"), [("fused", torch.float64), ("fused", torch.float32), ("native", torch.float32)]
)
def test_a_gradient_that_was_prepared_is_used_only_if_it_is_right(function: Any, impl: Any, dtype: torch.dtype) -> None:
    """Forward prepares for `loss.backward()`; whatever else is asked of the terms must come out right all the same."""
    reference, found = (
        torch.autograd.grad(function(rdrop_loss(z, LABELS, alpha=0.3, impl=name)), z)[0]
        for name in ("reference", impl)
        for z in [small_logits(dtype).requires_grad_()]
    )
    torch.testing.assert_close(found, reference, rtol=1e-5, atol=1e-6 * reference.abs().max().item())


@pytest.mark.parametrize("impl", ALL)
def test_a_prepared_gradient_is_handed_out_once(impl: Any) -> None:
    """Twice through the same graph gives twice the gradient, not a reused buffer."""
    logits = small_logits().requires_grad_()
    loss = rdrop_loss(logits, LABELS, impl=impl).loss
    loss.backward(retain_graph=True)  # type: ignore[no-untyped-call]
    assert logits.grad is not None
    once = logits.grad.clone()
    loss.backward()  # type: ignore[no-untyped-call]
    torch.testing.assert_close(logits.grad, 2 * once)


@pytest.mark.parametrize(
    ("impl", "dtype"),
    [("fused", torch.float32), ("fused", torch.float64), ("native", torch.float32), ("native", torch.bfloat16)],
)
def test_the_gradient_is_made_in_one_walk(impl: Any, dtype: torch.dtype) -> None:
    """Of a mean, forward has written the gradient already; backward makes nothing of the logits' size."""
    logits = torch.randn(2, 64, 50).to(dtype).requires_grad_()
    loss = rdrop_loss(logits, torch.randint(50, (64,)), alpha=0.37, impl=impl).loss
    with LargestTensors() as made:
        loss.backward()  # type: ignore[no-untyped-call]
    assert max(made.sizes) < logits.nbytes / 4
    unused = torch.randn(2, 640, 5000)
    with torch.no_grad(), LargestTensors() as made:
        rdrop_loss(unused, torch.randint(50, (640,)), impl=impl)
    assert max(made.sizes) < unused.nbytes  # nothing to differentiate: nothing is prepared


@pytest.mark.parametrize("impl", ALL)
@pytest.mark.parametrize("divergence", ["symmetric_kl", "kl", "js", "mse"])
def test_second_derivatives_are_autograds(impl: Any, divergence: Any) -> None:
    """A gradient penalty on top of the loss must not lose its own gradient silently."""
    second = []
    for name in (impl, "reference"):
        logits = small_logits().requires_grad_()
        loss = rdrop_loss(logits, LABELS, divergence=divergence, impl=name).loss
        (gradient,) = torch.autograd.grad(loss, logits, create_graph=True)
        second.append(torch.autograd.grad(gradient.square().sum(), logits)[0])
    torch.testing.assert_close(*second)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("impl", "kind"),
    [(impl, "categorical") for impl in ALL]
    + [(impl, kind) for impl in ("fused", "triton") for kind in ("binary", "regression")],
)
def test_in_place_gives_the_same_gradient(impl: Any, kind: Any, dtype: torch.dtype, reduction: Any) -> None:
    labels = torch.tensor([0, 3, -100]) if kind == "categorical" else torch.rand(3, 4)
    hidden = small_logits().to(dtype).requires_grad_()
    gradients = []
    for inplace in (False, True):
        logits = hidden * 1
        memory = logits.detach()
        out = rdrop_loss(logits, labels, kind=kind, impl=impl, reduction=reduction, inplace=inplace)
        gradients.append(torch.autograd.grad((3 * out.loss).sum(), [logits, hidden]))
    assert gradients[0][0].equal(gradients[1][0])
    assert gradients[0][1].equal(gradients[1][1])
    assert gradients[1][0].equal(memory)
    assert gradients[1][0].data_ptr() == memory.data_ptr()


@pytest.mark.parametrize("impl", ALL)
@pytest.mark.parametrize("name", views())
def test_in_place_in_any_layout(name: str, impl: Any) -> None:
    """What lies between the logits stays as it was; logits that share a place with others are not overwritten."""
    labels = torch.randint(33, (3, 4), generator=torch.Generator().manual_seed(1))
    (want,) = (
        torch.autograd.grad(rdrop_loss(z, labels, impl=impl, reduction="none").loss.sum(), z)[0]
        for z in [views()[name].requires_grad_()]
    )
    logits = views()[name].requires_grad_()
    memory = logits.detach()
    around = torch.ones(memory.untyped_storage().nbytes() // 4, dtype=torch.bool)
    around.as_strided(memory.shape, memory.stride(), memory.storage_offset()).fill_(False)
    before = torch.tensor([]).set_(memory.untyped_storage())[around]
    (found,) = torch.autograd.grad(rdrop_loss(logits, labels, impl=impl, reduction="sum", inplace=True).loss, logits)
    torch.testing.assert_close(found, want)
    assert torch.tensor([]).set_(memory.untyped_storage())[around].equal(before)
    assert memory.equal(found) == (name != "expanded")


@pytest.mark.parametrize("impl", ONE_WALK)
def test_in_place_needs_no_memory(impl: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(fused.CHUNK, "cpu", 4000)
    logits = torch.randn(2, 64, 500, requires_grad=True)
    with LargestTensors() as made:
        loss = rdrop_loss(logits, torch.randint(500, (64,)), impl=impl, inplace=True).loss
        torch.autograd.grad(loss, logits)
    assert max(made.sizes) < logits.nbytes / 4


@pytest.mark.parametrize("impl", ONE_WALK)
def test_what_in_place_cannot_give_is_said(impl: Any) -> None:
    for function in (lambda out: out.task_loss, lambda out: out.loss + out.divergence):
        out = rdrop_loss(small_logits().requires_grad_() * 1, LABELS, impl=impl, inplace=True)
        with pytest.raises(RuntimeError, match="through another combination of task_loss and divergence"):
            function(out).backward()  # type: ignore[no-untyped-call]
    loss = rdrop_loss(small_logits().requires_grad_() * 1, LABELS, impl=impl, inplace=True).loss
    loss.backward(retain_graph=True)  # type: ignore[no-untyped-call]
    with pytest.raises(RuntimeError, match="Backward came a second time"):
        loss.backward()  # type: ignore[no-untyped-call]
    logits = small_logits().requires_grad_() * 1
    for reduction in ("mean", "none"):
        out = rdrop_loss(logits, LABELS, impl=impl, inplace=True, reduction=reduction)
        with pytest.raises(RuntimeError, match="with create_graph=True"):
            torch.autograd.grad(out.loss.sum(), logits, create_graph=True)


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("impl", ALL)
def test_autograd_finds_out_who_else_needs_the_logits(impl: Any, reduction: Any) -> None:
    """The backward of tanh reads its output, which is a gradient by then."""
    logits = small_logits().requires_grad_().tanh()
    out = rdrop_loss(logits, LABELS, impl=impl, inplace=True, reduction=reduction)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.loss.sum().backward()  # type: ignore[no-untyped-call]


@pytest.mark.parametrize("impl", ALL)
def test_in_place_leaves_alone_what_has_no_gradient(impl: Any) -> None:
    logits = small_logits()
    before = logits.clone()
    rdrop_loss(logits, LABELS, impl=impl, inplace=True)
    with torch.no_grad():
        rdrop_loss(logits.requires_grad_(), LABELS, impl=impl, inplace=True)
    assert logits.equal(before)


def test_in_place_is_an_option_of_the_module() -> None:
    logits = small_logits().requires_grad_() * 1
    before = logits.detach().clone()
    RDropLoss(impl="fused", inplace=True)(logits, LABELS)
    assert not logits.equal(before)
