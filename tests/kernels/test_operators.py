"""Kernels inside `torch.compile`: one graph, the same numbers, operators that torch's own checks accept."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import rdrop
from rdrop import linear_rdrop_loss, rdrop_loss
from rdrop.kernels import choose, native, operators

IMPLS = ["fused", "native", "triton"]


def batch(passes: int = 2) -> tuple[Tensor, Tensor]:
    """Logits (M, 4, 7) and labels, one of them ignored."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.tensor([0, 6, -100, 3])
    return torch.randn(passes, 4, 7, generator=generator).requires_grad_(), labels


@pytest.fixture(autouse=True)
def fresh_compiler() -> None:
    torch._dynamo.reset()


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"divergence": "js", "label_smoothing": 0.1},
        {"stop_gradient": "first", "reduction": "none"},
        {"class_weight": torch.linspace(0, 2, 7), "mask": torch.tensor([True, False, True, True])},
        {"normalizer": torch.tensor(9)},
    ],
    ids=["default", "js", "stopped", "weighted", "normalizer"],
)
def test_a_compiled_loss_is_the_loss(options: dict[str, Any], impl: Any) -> None:
    logits, labels = batch(3)
    compiled = torch.compile(rdrop_loss, fullgraph=True, backend="aot_eager")
    found, want = (
        compiled(logits, labels, impl=impl, **options),
        rdrop_loss(logits, labels, impl="reference", **options),
    )
    torch.testing.assert_close(tuple(found), tuple(want))
    gradients = [torch.autograd.grad(out.loss.sum(), logits)[0] for out in (found, want)]
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("kind", ["binary", "regression"])
@pytest.mark.parametrize("impl", ["fused", "triton"])
def test_the_other_kinds(impl: Any, kind: Any) -> None:
    logits, _ = batch()
    labels = torch.rand(4, 7)
    compiled = torch.compile(rdrop_loss, fullgraph=True, backend="aot_eager")
    found = compiled(logits, labels, kind=kind, impl=impl)
    want = rdrop_loss(logits, labels, kind=kind, impl="reference")
    torch.testing.assert_close(tuple(found), tuple(want))
    gradients = [torch.autograd.grad(out.loss, logits)[0] for out in (found, want)]
    torch.testing.assert_close(*gradients)


def test_auto_takes_the_kernel_into_the_graph() -> None:
    if native.refusal() is not None:
        pytest.skip("no C++ compiler was there when rdrop was installed")
    graphs = []

    def backend(graph: torch.fx.GraphModule, _: Any) -> Any:
        graphs.append(graph)
        return graph

    logits, labels = batch()
    torch.compile(rdrop_loss, fullgraph=True, backend=backend)(logits, labels)
    assert any("rdrop" in str(node.target) for node in graphs[0].graph.nodes)
    assert choose("auto", logits).name == "native"


def test_a_whole_training_step_compiles() -> None:
    """Model, both passes and loss in one graph, with the compiler that users have."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 16), nn.ReLU(), nn.Linear(16, 7))
    x, labels = torch.randn(4, 5), torch.tensor([0, 6, -100, 3])

    def loss(x: Tensor) -> Tensor:
        return rdrop_loss(model(torch.cat((x, 2 * x))).unflatten(0, (2, -1)), labels, alpha=0.5).loss

    want = torch.autograd.grad(loss(x), list(model.parameters()))
    found = torch.autograd.grad(torch.compile(loss, fullgraph=True)(x), list(model.parameters()))
    torch.testing.assert_close(found, want)


@pytest.mark.parametrize("dynamic", [True, None])
def test_sizes_and_alpha_may_change(dynamic: bool | None) -> None:
    compiled = torch.compile(rdrop_loss, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    for rows in (4, 9, 17):
        logits, labels = torch.randn(2, rows, 7, requires_grad=True), torch.randint(7, (rows,))
        found = compiled(logits, labels, alpha=rows / 10, impl="fused")
        want = rdrop_loss(logits, labels, alpha=rows / 10, impl="reference")
        torch.testing.assert_close(tuple(found), tuple(want))


@pytest.mark.parametrize("inplace", [False, True])
def test_inside_a_graph_gradients_have_memory_of_their_own(inplace: bool) -> None:
    logits, labels = batch()
    before = logits.detach().clone()
    out = torch.compile(rdrop_loss, fullgraph=True, backend="aot_eager")(logits, labels, inplace=inplace)
    out.loss.backward()  # type: ignore[no-untyped-call]
    assert logits.equal(before)


def test_the_linear_loss_compiles() -> None:
    hidden, weight = torch.randn(2, 4, 5, requires_grad=True), torch.randn(7, 5, requires_grad=True)
    labels = batch()[1]
    compiled = torch.compile(linear_rdrop_loss, fullgraph=True, backend="aot_eager")
    gradients = [
        torch.autograd.grad(call(hidden, weight, labels, softcap=2.0).loss, [hidden, weight])
        for call in (compiled, linear_rdrop_loss)
    ]
    torch.testing.assert_close(*gradients)


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # torch's own checks look at it
@pytest.mark.parametrize("impl", ["fused", "native"])
def test_torch_accepts_the_operators(impl: str) -> None:
    logits, labels = batch()
    arguments = (impl, logits, labels, labels != -100, None, "categorical", "symmetric_kl", "", 0.1)
    torch.library.opcheck(operators._measure, arguments)
    task, distance, kept = operators._measure(*arguments)
    others = (impl, logits.detach(), labels, labels != -100, None, kept.detach(), task.detach(), distance.detach())
    torch.library.opcheck(operators._write_gradient, (*others, *arguments[5:]))


def test_under_activation_checkpointing_and_autocast() -> None:
    """A loss that is computed a second time in backward, and logits in bfloat16."""
    torch.manual_seed(0)
    layer, x, labels = nn.Linear(5, 7), torch.randn(2, 4, 5), batch()[1]

    def loss(x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return rdrop.rdrop_loss(layer(x), labels).loss

    want = torch.autograd.grad(loss(x), layer.weight)
    again = torch.utils.checkpoint.checkpoint(loss, x, use_reentrant=False)
    torch.testing.assert_close(torch.autograd.grad(again, layer.weight), want)
