"""The linear head and the objective in one, held to the objective on the logits that are never made."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from allocations import LargestTensors
from rdrop import linear_rdrop_loss, rdrop_loss
from rdrop.kernels import linear
from rdrop.loss import RDropOutput

C, D = 37, 8


@pytest.fixture(autouse=True)
def several_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks of two or three positions, and classes in blocks."""
    monkeypatch.setattr(linear, "LEAST_ROWS", 5)
    monkeypatch.setattr(linear, "CLASSES_AT_ONCE", 16)


class Layer:
    """Hidden states, a head and labels, the same for the same shapes."""

    def __init__(
        self,
        positions: tuple[int, ...] = (3, 5),
        passes: int = 2,
        dtype: torch.dtype = torch.float32,
        bias: bool = True,
    ) -> None:
        generator = torch.Generator().manual_seed(passes)
        shapes = (passes, *positions, D), (C, D), (C,)
        self.bias: Tensor | None
        self.hidden, self.weight, self.bias = (
            torch.randn(shape, generator=generator).to(dtype).requires_grad_() for shape in shapes
        )
        if not bias:
            self.bias = None
        self.labels = torch.randint(C, positions, generator=generator)

    @property
    def parameters(self) -> list[Tensor]:
        """What has a gradient."""
        return [x for x in (self.hidden, self.weight, self.bias) if x is not None and x.requires_grad]

    def plain(self, *, logit_scale: float = 1.0, softcap: float | None = None, **options: Any) -> RDropOutput:
        """The objective on all logits."""
        logits = linear.logits_of(self.hidden, self.weight, self.bias, logit_scale, softcap)
        return rdrop_loss(logits, options.pop("labels", self.labels), **{**options, "impl": "reference"})

    def ours(self, **options: Any) -> RDropOutput:
        """The same without them."""
        labels = options.pop("labels", self.labels)
        return linear_rdrop_loss(self.hidden, self.weight, labels, bias=self.bias, **options)

    def assert_equal(
        self,
        function: Callable[[RDropOutput], Tensor] = lambda out: out.loss.sum(),
        rtol: float = 2e-5,
        atol: float = 2e-6,
        **options: Any,
    ) -> None:
        """Terms and gradients of both."""
        found, want = self.ours(**options), self.plain(**options)
        torch.testing.assert_close(tuple(found), tuple(want), rtol=rtol, atol=atol)
        gradients = [torch.autograd.grad(function(out), self.parameters) for out in (found, want)]
        torch.testing.assert_close(*gradients, rtol=rtol, atol=atol)


@pytest.mark.parametrize("impl", ["fused", "native", "triton", "reference", "auto"])
@pytest.mark.parametrize("divergence", ["symmetric_kl", "kl", "js", "mse"])
@pytest.mark.parametrize("passes", [1, 2, 3])
def test_it_is_the_objective_on_the_logits(passes: int, divergence: Any, impl: Any) -> None:
    Layer(passes=passes).assert_equal(impl=impl, divergence=divergence, alpha=0.7, label_smoothing=0.1)


@pytest.mark.parametrize("impl", ["fused", "native", "triton"])
@pytest.mark.parametrize(
    "options",
    [
        {"logit_scale": 0.3},
        {"logit_scale": -2.0, "softcap": 1.5},
        {"softcap": 30.0},
        {"class_weight": torch.linspace(0, 2, C)},
        {"stop_gradient": "first"},
        {"stop_gradient": "rest", "divergence": "kl"},
        {"reduction": "sum"},
        {"reduction": "none"},
        {"reduction": "none", "softcap": 2.0, "logit_scale": 0.5},
        {"normalizer": 3.0},
        {"normalizer": torch.tensor(7)},
        {"alpha": 0.0},
        {"alpha": torch.tensor(0.4)},
        {"ignore_index": 5},
        {"labels": None},
        {"labels": torch.rand(3, 5, C, generator=torch.Generator().manual_seed(0)).softmax(-1)},
    ],
    ids=[
        "scale", "scale-cap", "cap", "weights", "stop-first", "stop-rest", "sum", "none", "none-cap", "normalizer",
        "normalizer-tensor", "no-alpha", "alpha-tensor", "ignore", "unlabelled", "soft",
    ],
)  # fmt: skip
def test_every_option(options: dict[str, Any], impl: Any) -> None:
    Layer().assert_equal(impl=impl, **options)


@pytest.mark.parametrize("impl", ["fused", "native"])
@pytest.mark.parametrize("counted", [0, 2, 14, 15])
def test_positions_that_do_not_count(counted: int, impl: Any) -> None:
    """They are left out of the products."""
    layer = Layer()
    layer.labels.view(-1)[torch.randperm(15, generator=torch.Generator().manual_seed(1))[counted:]] = -100
    layer.assert_equal(impl=impl, softcap=3.0)
    layer.assert_equal(impl=impl, mask=torch.rand(3, 5) < 0.5, reduction="none")
    with torch.no_grad():
        layer.hidden[:, layer.labels < 0] = torch.nan  # what stands there does not matter
    found = torch.autograd.grad(layer.ours(impl=impl).loss, layer.parameters)
    assert all(x.isfinite().all() for x in found)


@pytest.mark.parametrize("kind", ["binary", "regression"])
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_the_other_kinds(kind: Any, reduction: Any) -> None:
    layer = Layer()
    labels = torch.rand(3, 5, C, generator=torch.Generator().manual_seed(0))
    labels[0, 1] = -100
    layer.assert_equal(kind=kind, labels=labels, reduction=reduction)
    if kind == "binary":
        layer.assert_equal(kind=kind, labels=labels, reduction=reduction, class_weight=torch.linspace(0, 2, C))


@pytest.mark.parametrize(
    "function",
    [
        lambda out: 65536 * out.loss,
        lambda out: out.loss / 7 - 3 * out.loss,
        lambda out: 0 * out.loss,
        lambda out: out.task_loss,
        lambda out: out.divergence,
        lambda out: out.task_loss + 5 * out.divergence,
        lambda out: out.loss + 1e-3 * out.divergence,
    ],
)
@pytest.mark.parametrize("impl", ["fused", "native", "triton"])
def test_whatever_backward_comes_through(function: Any, impl: Any) -> None:
    layer = Layer()
    layer.labels[0, 1] = -100
    gradients = [
        torch.autograd.grad(function(call(alpha=0.3, impl=impl)), layer.parameters)
        for call in (layer.ours, layer.plain)
    ]
    size = max(x.abs().max().item() for x in gradients[1])
    torch.testing.assert_close(*gradients, rtol=2e-5, atol=2e-6 * size)


@pytest.mark.parametrize("positions", [(1,), (7,), (2, 3, 4), (0,)])
def test_any_number_of_positions(positions: tuple[int, ...]) -> None:
    Layer(positions).assert_equal()
    Layer(positions).assert_equal(reduction="none")


@pytest.mark.parametrize("frozen", ["hidden", "weight", "bias"])
def test_what_is_frozen_gets_no_gradient(frozen: str) -> None:
    for reduction in ("mean", "none"):
        layer = Layer()
        getattr(layer, frozen).requires_grad_(False)
        layer.assert_equal(reduction=reduction)
    Layer(bias=False).assert_equal()


def test_a_tied_weight_gets_both_gradients() -> None:
    embedding = torch.nn.Embedding(C, D)
    ids, labels = torch.randint(C, (2, 3, 5)), torch.randint(C, (3, 5))
    hidden = embedding(ids).tanh()
    found = torch.autograd.grad(linear_rdrop_loss(hidden, embedding.weight, labels).loss, embedding.weight)
    hidden = embedding(ids).tanh()
    want = torch.autograd.grad(rdrop_loss(hidden @ embedding.weight.T, labels).loss, embedding.weight)
    torch.testing.assert_close(found, want)


def test_alpha_can_be_learned() -> None:
    layer, alpha = Layer(), torch.tensor(0.4, requires_grad=True)
    found, want = (
        torch.autograd.grad(call(alpha=alpha).loss, [alpha, layer.weight]) for call in (layer.ours, layer.plain)
    )
    torch.testing.assert_close(found, want)


def test_backward_may_be_called_twice() -> None:
    layer = Layer()
    loss = layer.ours().loss
    loss.backward(retain_graph=True)  # type: ignore[no-untyped-call]
    once = copy.deepcopy([x.grad for x in layer.parameters])
    loss.backward()  # type: ignore[no-untyped-call]
    for parameter, gradient in zip(layer.parameters, once, strict=True):
        assert gradient is not None
        torch.testing.assert_close(parameter.grad, 2 * gradient)


def test_second_derivatives_are_autograds() -> None:
    second = []
    layer = Layer()
    for call in (layer.ours, layer.plain):
        for term in range(3):
            gradients = torch.autograd.grad(call(softcap=2.0)[term], layer.parameters, create_graph=True)
            penalty = sum((g.square().sum() for g in gradients), torch.tensor(0.0))
            second.append(torch.autograd.grad(penalty, layer.parameters))
    torch.testing.assert_close(second[:3], second[3:], rtol=1e-4, atol=1e-5)


def test_gradients_are_the_same_every_time() -> None:
    layer = Layer((40, 5))
    one, two = (torch.autograd.grad(layer.ours().loss, layer.parameters) for _ in range(2))
    assert all(a.equal(b) for a, b in zip(one, two, strict=True))


@pytest.mark.parametrize("softcap", [None, 3.0])
def test_double_precision(softcap: float | None) -> None:
    layer = Layer(dtype=torch.float64)
    layer.assert_equal(softcap=softcap, rtol=1e-10, atol=1e-12)

    def terms(*tensors: Tensor) -> Any:
        return linear_rdrop_loss(tensors[0], tensors[1], layer.labels, bias=tensors[2], softcap=softcap)[:]

    assert torch.autograd.gradcheck(terms, layer.parameters)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("impl", ["fused", "auto"])
def test_half_precision_errs_as_plain_torch_does(dtype: torch.dtype, impl: Any) -> None:
    layer, exact = Layer((16, 5), dtype=dtype), Layer((16, 5), dtype=torch.float64)
    for parameter, rounded in zip(exact.parameters, layer.parameters, strict=True):
        parameter.data.copy_(rounded.data)
    scale = 1024.0 / 3  # as a GradScaler does, and a number that a half cannot hold
    truth = torch.autograd.grad(scale * exact.plain().loss, exact.parameters)
    plain = torch.autograd.grad(scale * layer.plain().loss, layer.parameters)
    found = torch.autograd.grad(scale * layer.ours(impl=impl).loss, layer.parameters)
    for want, rough, got, of in zip(truth, plain, found, layer.parameters, strict=True):
        assert got.dtype == of.dtype
        error, others = ((x.double() - want).square().mean().sqrt() for x in (got, rough))
        assert error <= 2 * others + torch.finfo(dtype).eps * want.square().mean().sqrt()


def test_the_weights_gradient_is_summed_up_in_float32() -> None:
    """Thousands of equal contributions, of which bfloat16 would lose all after the first few hundred."""
    hidden = torch.ones(1, 4096, 1, dtype=torch.bfloat16)
    weight = torch.zeros(2, 1, dtype=torch.bfloat16, requires_grad=True)
    loss = linear_rdrop_loss(hidden, weight, torch.zeros(4096, dtype=torch.int64), reduction="sum").loss
    assert torch.autograd.grad(loss, weight)[0].tolist() == [[-2048.0], [2048.0]]


def test_under_autocast_the_products_are_in_its_dtype() -> None:
    layer = Layer()
    with torch.autocast("cpu", torch.bfloat16):
        found, want = layer.ours(), layer.plain()
    torch.testing.assert_close(tuple(found), tuple(want), rtol=2e-2, atol=2e-3)
    gradients = [torch.autograd.grad(out.loss, layer.parameters) for out in (found, want)]
    assert all(x.dtype == torch.float32 for x in gradients[0])
    torch.testing.assert_close(*gradients, rtol=5e-2, atol=5e-3)


def test_the_logits_never_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    hidden, weight = torch.randn(2, 256, 4, requires_grad=True), torch.randn(1000, 4, requires_grad=True)
    monkeypatch.setattr(linear, "LEAST_ROWS", 16)
    labels = torch.randint(1000, (256,))
    for function in (lambda out: out.loss, lambda out: out.task_loss):
        with LargestTensors() as made:
            function(linear_rdrop_loss(hidden, weight, labels)).backward()  # type: ignore[no-untyped-call]
        assert max(made.sizes) <= 16 * 1000 * 4  # of 512 * 1000 * 4
    with torch.no_grad(), LargestTensors() as made:
        linear_rdrop_loss(hidden, weight, labels)
    assert max(made.sizes) <= 16 * 1000 * 4


def test_inside_compile_it_is_plain_torch() -> None:
    layer = Layer()
    compiled = torch.compile(layer.ours, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(tuple(compiled(softcap=2.0)), tuple(layer.plain(softcap=2.0)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden": torch.zeros(3, D)}, r"hidden has shape \(3, 8\); expected \(M, B, ..., D\)"),
        ({"weight": torch.zeros(C, 9)}, r"weight has shape \(37, 9\); expected \(C, 8\)"),
        ({"bias": torch.zeros(36)}, r"bias has shape \(36,\); expected \(37,\)"),
        ({"labels": torch.zeros(3, 4).long()}, r"labels have shape \(3, 4\); logits \(2, 3, 5, 37\)"),
        ({"labels": torch.full((3, 5), 37)}, r"labels\[0, 0\] is 37; expected a class id in 0..36"),
        ({"logit_scale": float("inf")}, "logit_scale is inf; expected a finite number"),
        ({"softcap": 0.0}, r"softcap is 0.0; expected a finite number above 0"),
        ({"alpha": -1.0}, "alpha is -1.0; expected a finite number of at least 0"),
        ({"reduction": "median"}, "reduction is 'median'"),
        ({"impl": "cuda"}, "impl is 'cuda'"),
    ],
)
def test_what_does_not_fit_is_refused(change: dict[str, Any], message: str) -> None:
    layer = Layer()
    arguments = {"hidden": layer.hidden, "weight": layer.weight, "labels": layer.labels, "bias": layer.bias, **change}
    with pytest.raises(ValueError, match=message):
        linear_rdrop_loss(**arguments)


def test_mixed_dtypes_are_refused() -> None:
    with pytest.raises(TypeError, match=r"weight has dtype torch\.float64 and hidden torch\.float32; cast one"):
        linear_rdrop_loss(torch.zeros(2, 3, D), torch.zeros(C, D, dtype=torch.float64), torch.zeros(3).long())
