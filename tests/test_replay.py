"""What several calls under a `Replay` share, and that they are, bit for bit, several plain calls."""

from __future__ import annotations

import copy
import random
import weakref
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models import efficientnet_b0  # type: ignore[import-untyped]
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    BertConfig,
    BertForSequenceClassification,
    ConvNextConfig,
    ConvNextForImageClassification,
    GPT2Config,
    GPT2LMHeadModel,
)

from rdrop.replay import Replay
from rdrop.running_statistics import buffers_kept

IMAGES = (3, 3, 32, 32)


class Functional(nn.Module):
    """Every way to draw by a function, after a layer without any."""

    def __init__(self, draw: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.trunk, self.head, self.draw = nn.Linear(6, 8), nn.Linear(8, 3), draw

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.draw(self.trunk(x)))
        return out


class IgnoredReturn(nn.Module):
    """Uses a dropout layer for what it does to its input."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk, self.drop, self.head = nn.Linear(6, 8), nn.Dropout(0.5, inplace=True), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.trunk(x)
        before = y * 1.0
        self.drop(y)
        out: Tensor = self.head(y + before)
        return out


class Attention(nn.Module):
    """Fused attention with dropout inside."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(6, 24), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).view(len(x), 1, 1, 3, 8).unbind(3)
        out: Tensor = self.out(F.scaled_dot_product_attention(q, k, v, dropout_p=0.5).flatten(1))
        return out


class LayerDrop(nn.Module):
    """Leaves layers out for a whole forward, by torch, Python or NumPy."""

    def __init__(self, draw: Callable[[], Any]) -> None:
        super().__init__()
        self.trunk, self.draw = nn.Linear(6, 8), draw
        self.layers, self.head = nn.ModuleList(nn.Linear(8, 8) for _ in range(4)), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.trunk(x)
        for layer in self.layers:
            if self.draw() < 0.5:
                x = layer(x)
        out: Tensor = self.head(x)
        return out


class Branching(nn.Module):
    """Goes where its random numbers lead it."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk, self.one, self.other = nn.Linear(6, 8), nn.Linear(8, 3), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.dropout(self.trunk(x))
        out: Tensor = self.one(x) if x.sum() > 0 else self.other(x)
        return out


class Parallel(nn.Module):
    """A branch that draws nothing, after one that draws."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.other, self.head = nn.Linear(6, 8), nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        drawn = F.dropout(self.one(x))
        out: Tensor = self.head(drawn + self.other(x).relu_())
        return out


class ThroughAView(nn.Module):
    """Draws into a view, and reads the whole."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk, self.head = nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.trunk(x)
        F.dropout(y[:, :4], inplace=True)
        out: Tensor = self.head(y)
        return out


class Doubled(torch.autograd.Function):
    """A function with a backward of its own, that keeps what it gives."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        y = (x * 2).exp()
        ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        return gradients[0] * 2 * ctx.saved_tensors[0]


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.trunk, self.lstm, self.head = nn.Linear(6, 8), nn.LSTM(8, 8, 2, dropout=0.5), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.lstm(self.trunk(x)[None])[0][0])
        return out


def bert() -> tuple[nn.Module, Any]:
    small: dict[str, Any] = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 32, "vocab_size": 20}
    model = BertForSequenceClassification(BertConfig(**small, num_hidden_layers=2))
    for module in (model.bert.embeddings, model.bert.encoder.layer[0]):
        module.requires_grad_(False)
    return model, {"input_ids": torch.randint(1, 20, (3, 5)), "attention_mask": torch.ones(3, 5, dtype=torch.long)}


def bart() -> tuple[nn.Module, Any]:
    sizes: dict[str, Any] = {
        f"{side}_{name}": 2 for side in ("encoder", "decoder") for name in ("layers", "attention_heads", "ffn_dim")
    }
    sizes |= {"d_model": 8, "vocab_size": 20, "encoder_layerdrop": 0.5, "decoder_layerdrop": 0.5}
    config = BartConfig(**sizes)
    ids = torch.randint(4, 20, (3, 5))
    return BartForConditionalGeneration(config), {"input_ids": ids, "labels": ids}


def gpt2() -> tuple[nn.Module, Any]:
    config = GPT2Config(n_embd=16, n_layer=2, n_head=2, vocab_size=20, n_positions=16, embd_pdrop=0.0)
    return GPT2LMHeadModel(config), {"input_ids": torch.randint(0, 20, (3, 5))}


def convnext() -> tuple[nn.Module, Any]:
    config = ConvNextConfig(hidden_sizes=[8, 8, 8, 8], depths=[1, 1, 1, 1], drop_path_rate=0.5)
    return ConvNextForImageClassification(config), {"pixel_values": torch.randn(IMAGES)}


def pictures(build: Callable[[], nn.Module]) -> Callable[[], tuple[nn.Module, Any]]:
    return lambda: (build(), (torch.randn(IMAGES),))


def rows(build: Callable[[], nn.Module]) -> Callable[[], tuple[nn.Module, Any]]:
    return lambda: (build(), (torch.randn(5, 6),))


def trunk() -> list[nn.Module]:
    return [nn.Linear(6, 8), nn.ReLU(inplace=True), nn.Linear(8, 8)]


CASES: dict[str, Callable[[], tuple[nn.Module, Any]]] = {
    "timm, stochastic depth": pictures(
        lambda: timm.create_model("resnet10t", num_classes=3, drop_path_rate=0.5, zero_init_last=False)
    ),
    "timm, dropout in the head": pictures(lambda: timm.create_model("mobilenetv3_small_050", drop_rate=0.5)),
    "timm, drop block": lambda: (
        timm.create_model("resnet10t", num_classes=3, drop_block_rate=0.5, zero_init_last=False),
        (torch.randn(3, 3, 128, 128),),
    ),
    "timm, vision transformer": pictures(
        lambda: timm.create_model(
            "vit_tiny_patch16_224", img_size=32, depth=2, attn_drop_rate=0.2, proj_drop_rate=0.2, drop_path_rate=0.5
        )
    ),
    "timm, patch dropout": pictures(
        lambda: timm.create_model("vit_tiny_patch16_224", img_size=32, patch_size=8, depth=2, patch_drop_rate=0.5)
    ),
    "torchvision, stochastic depth": pictures(lambda: efficientnet_b0(stochastic_depth_prob=0.5)),
    "transformers, frozen lower half": bert,
    "transformers, layer drop": bart,
    "transformers, no dropout at first": gpt2,
    "transformers, stochastic depth": convnext,
    "in place": rows(lambda: nn.Sequential(*trunk(), nn.Dropout(inplace=True), nn.ReLU(inplace=True), nn.Linear(8, 3))),
    "in place on the input": rows(lambda: nn.Sequential(nn.Dropout(inplace=True), nn.Linear(6, 3))),
    "in place, for its effect": rows(IgnoredReturn),
    "in place, through a view": rows(ThroughAView),
    "norm above dropout": rows(
        lambda: nn.Sequential(nn.Linear(6, 8), nn.Dropout(), nn.BatchNorm1d(8), nn.Linear(8, 3))
    ),
    "functional": rows(lambda: Functional(F.dropout)),
    "alpha dropout": rows(lambda: Functional(lambda x: F.alpha_dropout(x, training=True))),
    "dropout of channels": rows(lambda: Functional(lambda x: F.dropout1d(x[None])[0])),
    "gumbel": rows(lambda: Functional(F.gumbel_softmax)),
    "random activation": rows(lambda: Functional(lambda x: F.rrelu(x, training=True))),
    "noise": rows(lambda: Functional(lambda x: x + torch.randn_like(x))),
    "noise in place": rows(lambda: Functional(lambda x: x.mul_(torch.empty(8).bernoulli_(0.5)))),
    "a mask from NumPy": rows(
        lambda: Functional(lambda x: x * torch.from_numpy(np.random.default_rng().random(8) > 0.5))
    ),
    "a backward of its own": rows(lambda: Functional(lambda x: F.dropout(Doubled.apply(x)))),
    "attention": rows(Attention),
    "recurrent": rows(Recurrent),
    "layer drop by torch": rows(lambda: LayerDrop(lambda: torch.rand([]))),
    "layer drop by Python": rows(lambda: LayerDrop(random.random)),
    "layer drop by NumPy": rows(lambda: LayerDrop(lambda: np.random.uniform())),
    "branching": rows(Branching),
    "parallel": rows(Parallel),
}


def seed() -> None:
    torch.manual_seed(1)
    random.seed(1)
    np.random.seed(1)


def answer(output: Any) -> Tensor:
    found = output["logits"] if isinstance(output, dict) else output
    assert isinstance(found, Tensor)
    return found


@pytest.mark.parametrize("case", [name for name in CASES if name != "a mask from NumPy"])
def test_calls_are_plain_calls_bit_for_bit(case: str) -> None:
    torch.manual_seed(0)
    model, inputs = CASES[case]()
    model = model.double().train()
    args = tuple(t.double() for t in inputs) if isinstance(inputs, tuple) else ()
    kwargs = inputs if isinstance(inputs, dict) else {}
    kwargs = {key: t.double() if t.is_floating_point() else t for key, t in kwargs.items()}
    twin, weights = copy.deepcopy(model), [torch.randn(1, dtype=torch.float64) for _ in range(3)]

    def total(run: Callable[[int], Tensor]) -> Tensor:
        return torch.stack([w * run(i).square().sum() for i, w in enumerate(weights)]).sum()

    def plain(index: int) -> Tensor:
        with buffers_kept(twin.modules() if index else []):
            return answer(twin(*[t.clone() for t in args], **kwargs))

    seed()
    torch.autograd.backward(total(plain))
    after = torch.get_rng_state()
    inputs = [t.clone() for t in args]
    replay = Replay((inputs, kwargs))
    found = []

    def shared(index: int) -> Tensor:
        with buffers_kept(model.modules() if index else []):
            found.append(answer(replay.run(lambda: model(*inputs, **kwargs))))
            return found[-1]

    seed()
    torch.autograd.backward(total(shared))
    assert torch.equal(torch.get_rng_state(), after)
    seed()
    for one in found:
        assert torch.equal(one, answer(twin(*[t.clone() for t in args], **kwargs)))
    assert not torch.equal(found[0], found[1])
    for (name, p), q in zip(model.named_parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-7, atol=1e-9, msg=name)
    assert replay.diverged == (case == "in place, through a view")
    assert replay.misled == (case == "a backward of its own")


class Counting(torch.overrides.TorchFunctionMode):
    """Names of the operations that are really carried out."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(func.__name__)
        return func(*args, **(kwargs or {}))


def carried_out(model: nn.Module, x: Tensor, calls: int = 2) -> list[str]:
    """Operations of several calls, without readings of attributes."""
    with Counting() as counting:
        replay = Replay(x)
        kept = [replay.run(lambda: model(x)) for _ in range(calls)]  # with their graphs, as in training
    assert len(kept) == calls
    return [name for name in counting.names if name in ("linear", "relu", "relu_", "dropout", "add")]


def test_what_draws_nothing_is_computed_once() -> None:
    model, _ = CASES["in place"]()
    names = carried_out(model, torch.randn(5, 6), calls=3)
    assert names == ["linear", "relu", "linear", *3 * ["dropout", "relu", "linear"]]


def test_a_branch_without_randomness_is_shared_also_after_one_with_it() -> None:
    names = carried_out(Parallel(), torch.randn(5, 6))
    assert names == ["linear", "dropout", "linear", "relu_", "add", "linear", "dropout", "add", "linear"]


def test_layers_that_are_left_out_are_computed_once_where_their_input_is_the_same() -> None:
    decisions = iter([0, 0, 1, 1, 0, 0, 0, 1])
    model = LayerDrop(lambda: next(decisions))
    assert carried_out(model, torch.randn(5, 6)).count("linear") == 1 + 2 + 1 + 1 + 1


def scaled(x: Tensor, factor: float) -> tuple[Tensor, Tensor]:
    return x * factor, 1.0 / (x * factor)


def test_equal_numbers_of_different_types_are_different_arguments() -> None:
    x, replay = torch.ones(3, dtype=torch.int64), Replay(())
    factors = [1, True, 1.0, 0.0, -0.0]
    for order in (factors, factors[::-1]):
        found = replay.run(partial(list, map(partial(scaled, x), order)))
        for factor, pair in zip(order, found, strict=True):
            expected = scaled(x, factor)
            assert all(torch.equal(a, b) and a.dtype == b.dtype for a, b in zip(pair, expected, strict=True))


def test_what_is_asked_for_twice_is_given_in_order() -> None:
    """Two buffers made alike are two buffers, also where one of them is written to."""

    def call() -> tuple[Tensor, Tensor]:
        one, other = torch.zeros(3), torch.zeros(3)
        one += 1
        return one, other

    replay = Replay(())
    for _ in range(3):
        one, other = replay.run(call)
        assert one.tolist() == [1.0] * 3
        assert other.tolist() == [0.0] * 3


def test_a_frozen_trunk_is_not_kept_in_memory() -> None:
    """Beyond the boundary nothing of a trunk without gradients outlives the call that would free it."""
    trunk = nn.Sequential(nn.Linear(6, 8), nn.GELU(), nn.Linear(8, 8)).requires_grad_(False)
    seen: list[weakref.ref[Tensor]] = []
    for layer in trunk:
        layer.register_forward_hook(lambda *args: seen.append(weakref.ref(args[2])))
    model = nn.Sequential(trunk, nn.Dropout(), nn.Linear(8, 3))
    x = torch.randn(5, 6)
    torch.manual_seed(1)
    plain = [model(x), model(x)]
    seen.clear()
    torch.manual_seed(1)
    replay = Replay(x)
    first = replay.run(lambda: model(x))
    assert [reference() is None for reference in seen] == [True, True, False]
    assert torch.equal(first, plain[0])
    assert torch.equal(replay.run(lambda: model(x)), plain[1])
    assert not replay.diverged


def test_a_call_that_takes_another_way_starts_over_with_its_random_numbers() -> None:
    trunk, head = nn.Linear(6, 8), nn.Linear(8, 3)
    calls = []

    def call() -> Tensor:
        calls.append(1)
        with torch.no_grad():
            y = trunk(x)
            z = y.exp()
        if len(calls) % 2 == 0:
            z = F.dropout(y)  # the first call had no use for y
        out: Tensor = head(F.dropout(z))
        return out

    x = torch.randn(5, 6)
    torch.manual_seed(1)
    plain = [call(), call()]
    torch.manual_seed(1)
    replay = Replay(x)
    found = [replay.run(call), None]
    calls[:] = calls[:3]

    def again() -> Tensor:
        calls[:] = calls[:3]  # however often it is called, it is the second
        return call()

    found[1] = replay.run(again)
    assert replay.diverged
    assert all(map(torch.equal, plain, found))


def test_a_model_that_catches_errors_cannot_hide_that_something_is_gone() -> None:
    calls = []

    def call() -> Tensor:
        calls.append(1)
        y = torch.ones(4) * 2
        z = y + 1
        try:
            return F.dropout(y if len(calls) > 1 else z)
        except Exception:
            return torch.zeros(4)

    replay = Replay(())
    replay.run(call)
    assert replay.run(call).max() == 4
    assert replay.diverged


class Shaken(nn.Linear):
    """A layer that draws where nobody looks for it."""

    def __init__(self, draw: Callable[[], float]) -> None:
        super().__init__(6, 6)
        self.draw = draw

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) * self.draw()


@pytest.mark.parametrize("draw", [random.random, np.random.random, lambda: float(torch.rand(()))])
def test_a_part_that_is_taken_as_a_whole_and_draws_is_computed_in_each_call(draw: Callable[[], float]) -> None:
    layer, x = Shaken(draw), torch.randn(5, 6)
    seed()
    plain = [layer(x) for _ in range(3)]
    seed()
    replay = Replay(x)
    with replay.as_wholes([layer]):
        found = [replay.run(lambda: layer(x)) for _ in range(3)]
    assert all(map(torch.equal, plain, found))
    assert "forward" not in vars(layer)


def test_a_part_that_is_taken_as_a_whole_runs_once_also_with_functions_of_its_own() -> None:
    calls = []

    class Part(nn.Module):
        def forward(self, y: Tensor, *, cache: Any = None) -> Tensor:
            calls.append(1)
            out: Tensor = Doubled.apply(y)
            return out

    part, x = Part(), torch.randn(5, 6, requires_grad=True)

    def total(shared: Callable[[Callable[[], Tensor]], Tensor], **options: Any) -> Tensor:
        seed()
        loss = torch.stack([shared(lambda: F.dropout(part(x, **options)).square().sum()) for _ in range(2)]).sum()
        return torch.autograd.grad(loss, x)[0]

    plain = total(lambda call: call())
    calls.clear()
    for options, runs in (({}, 1), ({"cache": object()}, 2)):  # what is held in an object may change between calls
        replay = Replay(x)
        with replay.as_wholes([part]):
            torch.testing.assert_close(total(replay.run, **options), plain)
        assert len(calls) == runs
        calls.clear()


def test_draws_can_be_shared() -> None:
    lower, upper, x = nn.Dropout(), nn.Dropout(), torch.ones(1000)
    middle: list[Tensor] = []

    def call() -> Tensor:
        replay.draws_are_shared = True
        middle.append(lower(x.clone()))
        replay.draws_are_shared = False
        out: Tensor = upper(middle[-1])
        return out

    replay = Replay(x)
    one, other = replay.run(call), replay.run(call)
    assert middle[0] is middle[1]
    assert torch.equal(one == 0, one == 0)
    assert 0.3 < ((one == 0) & (other == 0) & (middle[0] != 0)).float().mean() / 0.5 / 0.5 < 0.7


def test_a_later_call_may_be_made_without_gradients() -> None:
    trunk, head, x = nn.Linear(6, 8), nn.Linear(8, 3), torch.randn(5, 6)
    replay, runs = Replay(x), []
    trunk.register_forward_hook(lambda *args: runs.append(args[2]))

    def call() -> Tensor:
        out: Tensor = head(F.dropout(trunk(x)))
        return out

    one = replay.run(call)
    with torch.no_grad():
        other = replay.run(call)
    assert runs[0] is runs[1]
    assert one.requires_grad
    assert not other.requires_grad


def test_gradient_hooks_on_what_is_shared_see_the_whole_gradient_once() -> None:
    gradients: list[Tensor] = []
    weight = torch.ones(3, requires_grad=True)

    def call() -> Tensor:
        y = weight * 2
        y.register_hook(gradients.append)  # type: ignore[no-untyped-call]
        return F.dropout(y, 0.0, training=True) + torch.rand(3)

    replay = Replay(())
    torch.autograd.backward((replay.run(call) + replay.run(call)).sum())
    assert [g.tolist() for g in gradients] == [[2.0] * 3]
    assert weight.grad is not None
    assert weight.grad.tolist() == [4.0] * 3


def test_state_that_draws_nothing_moves_once_and_random_state_in_each_call() -> None:
    counter, noise = torch.zeros(()), torch.zeros(())

    def call() -> Tensor:
        counter.add_(1)
        noise.add_(torch.rand(()))
        return counter + noise

    replay = Replay(())
    one, other = replay.run(call), replay.run(call)
    assert counter == 1
    assert 1 <= one < other
    assert other == counter + noise
