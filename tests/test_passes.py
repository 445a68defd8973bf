"""Passes: laws that hold for every strategy, the random-number contract, BatchNorm, and what is refused."""

from __future__ import annotations

import copy
import gc
import warnings
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NamedTuple

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence
from torch.utils.checkpoint import checkpoint
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    MarianConfig,
    MarianMTModel,
    ViTConfig,
    ViTForImageClassification,
)

from rdrop import NoEffectWarning, NotBatched, explain_passes, forward_passes, set_dropout
from rdrop.passes import Strategy

STRATEGIES: tuple[Strategy, ...] = ("concat", "sequential", "shared")
SMALL: dict[str, Any] = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
SEQ2SEQ: dict[str, Any] = {
    "d_model": 16,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 32,
    "decoder_ffn_dim": 32,
    "vocab_size": 20,
    "pad_token_id": 1,
}

Case = tuple[nn.Module, tuple[Any, ...], dict[str, Any]]


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(4, 8, 2, dropout=0.5, batch_first=True)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        out, state = self.lstm(x)
        return self.head(out), state


def mlp(dropout: float = 0.5) -> nn.Sequential:
    return nn.Sequential(nn.Linear(6, 32), nn.ReLU(), nn.Dropout(dropout), nn.Linear(32, 3))


def bert() -> Case:
    model = BertForSequenceClassification(BertConfig(**SMALL, vocab_size=20, max_position_embeddings=16))
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0], [1, 1, 1, 1, 0]])
    inputs = {"attention_mask": mask, "labels": torch.tensor([0, 1, 1])}
    return model, (torch.randint(2, 20, (3, 5)),), inputs


def gpt2() -> Case:
    config = GPT2Config(n_embd=16, n_layer=1, n_head=2, vocab_size=20, n_positions=16, bos_token_id=0, eos_token_id=0)
    ids = torch.randint(0, 20, (3, 5))
    return GPT2LMHeadModel(config), (), {"input_ids": ids, "labels": ids}


def bart() -> Case:
    ids = torch.randint(4, 20, (3, 5))
    return BartForConditionalGeneration(BartConfig(**SEQ2SEQ)), (), {"input_ids": ids, "labels": ids}


def marian() -> Case:
    ids = torch.randint(4, 20, (3, 5))
    model = MarianMTModel(MarianConfig(**SEQ2SEQ, decoder_start_token_id=1))
    return model, (), {"input_ids": ids, "labels": ids}


def vit() -> Case:
    config = ViTConfig(**SMALL, image_size=8, patch_size=4, hidden_dropout_prob=0.1)
    return ViTForImageClassification(config), (torch.randn(3, 3, 8, 8),), {}


def resnet(**rates: Any) -> Case:
    rates = rates or {"drop_rate": 0.3}
    model = timm.create_model("resnet10t", num_classes=3, zero_init_last=False, **rates)
    return model, (torch.randn(3, 3, 32, 32),), {}


def recurrent() -> Case:
    return Recurrent(), (torch.randn(3, 5, 4),), {}


def perceptron() -> Case:
    return mlp(), (torch.randn(3, 6),), {}


CASES: list[Callable[[], Case]] = [bert, gpt2, bart, marian, vit, resnet, recurrent, perceptron]


def logits(output: Any) -> Tensor:
    found = output.logits if hasattr(output, "logits") else output[0] if isinstance(output, tuple) else output
    assert isinstance(found, Tensor)
    return found


def double(value: Any) -> Any:
    return value.double() if isinstance(value, Tensor) and value.is_floating_point() else value


def statistics(model: nn.Module) -> dict[str, Tensor]:
    return {name: buffer.clone() for name, buffer in model.named_buffers()}


@contextmanager
def no_effect_expected(message: str = "") -> Iterator[None]:
    with pytest.warns(NoEffectWarning, match=message):
        yield


# Laws: without randomness every strategy is M plain forwards.


@pytest.mark.parametrize("case", CASES)
def test_without_randomness_all_strategies_are_the_plain_forward(case: Callable[[], Case]) -> None:
    torch.manual_seed(0)
    model, args, kwargs = case()
    model = model.double().eval()
    args = tuple(double(a) for a in args)
    plain = logits(model(*args, **kwargs))
    weight = torch.randn(2, *plain.shape, dtype=torch.float64)
    torch.autograd.backward((torch.stack([plain, plain]) * weight).sum())
    expected = {name: p.grad for name, p in model.named_parameters()}
    for index, strategy in enumerate(STRATEGIES):
        model.zero_grad()
        if index == 0:
            with no_effect_expected("evaluation mode"):
                out = logits(forward_passes(model, *args, strategy=strategy, **kwargs))
        else:
            out = logits(forward_passes(model, *args, strategy=strategy, **kwargs))
        torch.testing.assert_close(out, torch.stack([plain, plain]), rtol=1e-10, atol=1e-12)
        torch.autograd.backward((out * weight).sum())
        for name, p in model.named_parameters():
            torch.testing.assert_close(p.grad, expected[name], rtol=1e-9, atol=1e-11, msg=f"{strategy}: {name}")


@pytest.mark.parametrize("case", CASES)
def test_with_randomness_every_usable_strategy_gives_different_passes(case: Callable[[], Case]) -> None:
    torch.manual_seed(0)
    model, args, kwargs = case()
    model.train()
    plan = explain_passes(model, *args, passes=3, **kwargs)
    assert set(plan.cost) | set(plan.refusals) == set(STRATEGIES)
    usable: list[Strategy] = [s for s in STRATEGIES if s in plan.cost]
    for strategy in usable:
        out = forward_passes(model, *args, passes=3, strategy=strategy, **kwargs)
        first = logits(out)
        assert first.shape[:2] == (3, 3)
        assert not any(torch.equal(first[i], first[j]) for i, j in ((0, 1), (0, 2), (1, 2)))
        if "labels" in kwargs:
            assert out.loss.dim() == 0
            out.loss.backward()


# The random-number contract.


@pytest.mark.parametrize("strategy", ["sequential", "shared"])
@pytest.mark.parametrize("case", CASES)
def test_passes_in_turn_are_m_calls_in_a_row_and_one_pass_is_one_call_bit_for_bit(
    case: Callable[[], Case], strategy: Strategy
) -> None:
    torch.manual_seed(0)
    model, args, kwargs = case()
    model.train()
    model(*args, **kwargs)
    state = copy.deepcopy(model.state_dict())
    torch.manual_seed(1)
    manual = [logits(model(*args, **kwargs)) for _ in range(3)]
    after = torch.get_rng_state()
    model.load_state_dict(state)
    torch.manual_seed(1)
    passes = logits(forward_passes(model, *args, passes=3, strategy=strategy, **kwargs))
    assert torch.equal(passes, torch.stack(manual))
    assert torch.equal(torch.get_rng_state(), after)
    model.load_state_dict(state)
    torch.manual_seed(1)
    assert torch.equal(logits(forward_passes(model, *args, passes=1, **kwargs)), manual[0][None])


def test_concat_draws_one_mask_for_all_rows() -> None:
    model, x = mlp(), torch.randn(3, 6)
    torch.manual_seed(1)
    out = forward_passes(model, x, strategy="concat")
    torch.manual_seed(1)
    assert torch.equal(out, model(torch.cat([x, x])).view(2, 3, 3))


@pytest.mark.parametrize("strategy", ["auto", *STRATEGIES])
def test_a_seed_repeats_the_output_and_deciding_draws_nothing(strategy: Strategy) -> None:
    x = torch.randn(3, 6)
    torch.manual_seed(0)
    model = mlp()
    torch.manual_seed(1)
    first = forward_passes(model, x, strategy=strategy)  # decides
    torch.manual_seed(1)
    assert torch.equal(forward_passes(model, x, strategy=strategy), first)  # has decided
    assert not torch.equal(forward_passes(model, x, strategy=strategy), first)


@pytest.mark.parametrize("case", [resnet, bert])
def test_deciding_leaves_generators_buffers_and_gradients_alone(case: Callable[[], Case]) -> None:
    model, args, kwargs = case()
    model.train()
    before, generator = statistics(model), torch.get_rng_state()
    explain_passes(model, *args, **kwargs)
    assert torch.equal(torch.get_rng_state(), generator)
    torch.testing.assert_close(statistics(model), before, rtol=0, atol=0)
    assert all(p.grad is None for p in model.parameters())


# The choice.


def test_auto_shares_what_lies_below_a_dropout_in_the_head() -> None:
    model: Any
    model, args, _ = resnet()
    plan = explain_passes(model, *args, passes=4)
    assert (plan.strategy, plan.passes) == ("shared", 4)
    assert 1 <= plan.cost["shared"] < 1.1
    assert plan.cost["concat"] == plan.cost["sequential"] == 4
    convolutions = []
    model.conv1.register_forward_hook(lambda *hooked: convolutions.append(hooked[2]))
    forward_passes(model, *args, passes=4)
    assert len({id(output) for output in convolutions}) == 1


def test_auto_repeats_the_batch_where_dropout_comes_first() -> None:
    model, args, kwargs = bert()
    model.train()
    plan = explain_passes(model, *args, **kwargs)
    assert plan.strategy == "concat"
    assert plan.cost["shared"] == pytest.approx(2, rel=0.1)
    assert "2.00 times" in plan.reason


def test_auto_decides_once_and_again_when_other_layers_draw() -> None:
    model = nn.Sequential(nn.Dropout(0.0), nn.Linear(6, 6), nn.ReLU(), nn.Dropout(0.5), nn.Linear(6, 3))
    x, calls = torch.randn(3, 6), []
    model[1].register_forward_hook(lambda *_: calls.append(1))
    assert explain_passes(model, x) is explain_passes(model, x)
    assert len(calls) == 3  # one plain, and one for each pass
    forward, backward = 36 + 2 * 18, 36 + 2 * 2 * 18  # the inputs of the first layer need no gradient
    assert explain_passes(model, x).cost["shared"] == pytest.approx((forward + backward) / (54 + 36 + 2 * 18))
    set_dropout(model, 0.5)
    assert explain_passes(model, x).cost["shared"] == pytest.approx(2)
    assert explain_passes(model, x).strategy == "concat"


def test_one_pass_is_a_plan_of_its_own() -> None:
    plan = explain_passes(mlp(), torch.randn(3, 6), passes=1)
    assert (plan.strategy, plan.cost, plan.refusals) == ("single", {"single": 1.0}, {})


class Custom(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function, self.drop, self.linear = function, nn.Dropout(0.5), nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.drop(self.function(self.linear(x)))
        return out


@pytest.mark.parametrize(
    ("build", "reason"),
    [
        (lambda: Custom(scripted()), "aten.exp.default run out of sight"),
        (lambda: Checkpointed(True), "(CheckpointError|out of sight)"),
    ],
)
def test_shared_refuses_with_the_reason_and_auto_then_repeats(build: Callable[[], nn.Module], reason: str) -> None:
    torch.manual_seed(0)
    model, x = build(), torch.randn(3, 6)
    plan = explain_passes(model, x)
    assert plan.strategy == "concat"
    assert set(plan.cost) == {"concat", "sequential"}
    with pytest.raises(RuntimeError, match=f'(?s)"shared" cannot be used for .*{reason}.*Use "concat" or'):
        forward_passes(model, x, strategy="shared")
    assert forward_passes(model, x).shape[:2] == (2, 3)


def exponential(x: Tensor) -> Tensor:
    return x.exp()


def scripted() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript is deprecated, and still in use
        return torch.jit.script(exponential)


def test_layer_drop_alone_needs_a_forward_for_each_pass() -> None:
    class LayerDrop(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.layerdrop = nn.Linear(6, 6), 0.5

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = x if self.training and torch.rand([]) < self.layerdrop else self.layer(x)
            return out

    torch.manual_seed(0)
    model, x = LayerDrop(), torch.randn(3, 6)
    for strategy in ("auto", "sequential", "shared"):
        out = forward_passes(model, x, passes=8, strategy=strategy)
        assert len({float(p.sum()) for p in out.detach()}) == 2
    assert explain_passes(model, x, passes=8).strategy in ("shared", "sequential")


# Structures.


class Pair(NamedTuple):
    first: Tensor
    second: Any


@dataclass(frozen=True)
class Record:
    rows: Tensor
    scale: Tensor
    note: str
    nothing: None


class Structured(nn.Module):
    """Takes and returns structures of every kind; `table` has its own first axis."""

    def __init__(self) -> None:
        super().__init__()
        self.drop, self.linear = nn.Dropout(0.5), nn.Linear(2, 2)

    def forward(self, batch: dict[str, Any], *, record: Record, pair: Pair) -> dict[str, Any]:
        x = self.linear(self.drop(batch["deep"][0]["x"])) + batch["offset"] + record.rows + pair.first
        assert record.scale.shape == (2,)
        return {
            "record": Record(x * record.scale, record.scale, record.note, None),
            "pair": Pair(x, [x.sum(), pair.second]),
            "od": OrderedDict(ids=batch["ids"], table=torch.eye(7)),
            "count": torch.tensor(3),
        }


def structured() -> Case:
    batch = {
        "deep": [{"x": torch.ones(3, 2)}],
        "offset": torch.zeros(3, 2),
        "ids": torch.arange(3),
        "frozen": MappingProxyType({"y": torch.ones(3)}),
    }
    record = Record(torch.zeros(3, 2), torch.tensor([1.0, 2.0]), "kept", None)
    return Structured(), (batch,), {"record": record, "pair": Pair(torch.zeros(3, 2), "also kept")}


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_structures_come_back_with_a_pass_axis_where_the_batch_is(strategy: Strategy) -> None:
    torch.manual_seed(0)
    model, args, kwargs = structured()
    out = forward_passes(model, *args, strategy=strategy, **kwargs)
    assert isinstance(out["record"], Record)
    assert out["record"].rows.shape == (2, 3, 2)
    assert torch.equal(out["record"].scale, torch.tensor([1.0, 2.0]))
    assert (out["record"].note, out["record"].nothing) == ("kept", None)
    assert isinstance(out["pair"], Pair)
    assert out["pair"].first.shape == (2, 3, 2)
    assert out["pair"].second[0].shape == ()
    assert out["pair"].second[1] == "also kept"
    assert isinstance(out["od"], OrderedDict)
    assert torch.equal(out["od"]["ids"], torch.arange(3).expand(2, 3))
    assert torch.equal(out["od"]["table"], torch.eye(7))
    assert out["count"] == 3


def test_a_scalar_is_the_mean_over_the_passes() -> None:
    model, args, kwargs = structured()
    for strategy in ("sequential", "shared"):
        torch.manual_seed(0)
        out = forward_passes(model, *args, strategy=strategy, **kwargs)
        torch.testing.assert_close(out["pair"].second[0], out["pair"].first.sum((1, 2)).mean())
    model, args, kwargs = bert()
    out = forward_passes(model.train(), *args, strategy="concat", **kwargs)
    both = nn.functional.cross_entropy(out.logits.flatten(0, 1), kwargs["labels"].repeat(2))
    torch.testing.assert_close(out.loss, both)


def test_model_outputs_of_transformers_keep_their_type_and_their_other_fields() -> None:
    model, args, kwargs = gpt2()
    model.train()
    plain = model(*args, **kwargs, output_hidden_states=True)
    for strategy in STRATEGIES:
        out = forward_passes(model, *args, strategy=strategy, **kwargs, output_hidden_states=True)
        assert type(out) is type(plain)
        assert list(out.keys()) == list(plain.keys())
        assert out.logits is out["logits"]
        assert [h.shape for h in out.hidden_states] == [(2, *h.shape) for h in plain.hidden_states]


def test_trap_09_rows_are_kept_together_and_an_odd_batch_is_no_problem() -> None:
    class Echo(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.drop = nn.Dropout(0.5)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return self.drop(torch.ones(x.shape)), x

    x = torch.arange(5.0)[:, None]
    for strategy in STRATEGIES:
        _, rows = forward_passes(Echo(), x, passes=3, strategy=strategy)
        assert torch.equal(rows, x.expand(3, 5, 1))


def test_a_doubled_batch_has_the_memory_format_of_the_batch() -> None:
    seen = []

    class Seen(nn.Conv2d):
        def forward(self, images: Tensor) -> Tensor:
            seen.append(images.is_contiguous(memory_format=torch.channels_last))
            return super().forward(images)

    model = nn.Sequential(Seen(3, 4, 3), nn.Dropout(0.5))
    images = torch.randn(2, 3, 8, 8).to(memory_format=torch.channels_last)
    forward_passes(model, images, strategy="concat")
    assert seen == [True]


@pytest.mark.parametrize("strategy", ["auto", *STRATEGIES])
def test_trap_18_the_callers_batch_is_not_changed(strategy: Strategy) -> None:
    model, args, kwargs = structured()
    batch = args[0]
    before, shallow = copy.deepcopy({k: v for k, v in batch.items() if k != "frozen"}), dict(batch)
    versions = (batch["deep"][0]["x"]._version, batch["ids"]._version)
    forward_passes(model, *args, strategy=strategy, **kwargs)
    assert all(batch[key] is shallow[key] for key in batch)
    torch.testing.assert_close({k: v for k, v in batch.items() if k != "frozen"}, before, rtol=0, atol=0)
    assert (batch["deep"][0]["x"]._version, batch["ids"]._version) == versions


def test_not_batched_inputs_are_not_repeated() -> None:
    class Lookup(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.drop = nn.Dropout(0.5)

        def forward(self, table: Tensor, x: Tensor) -> Tensor:
            assert table.shape == (4, 4)
            out: Tensor = self.drop(x) @ table
            return out

    x, table = torch.ones(4, 4), torch.eye(4)
    for strategy in ("auto", *STRATEGIES):
        assert forward_passes(Lookup(), NotBatched(table), x, strategy=strategy).shape == (2, 4, 4)
    with pytest.raises(AssertionError):
        forward_passes(Lookup(), table, x, strategy="concat")


def test_packed_and_nested_inputs_need_one_forward_for_each_pass() -> None:
    class Packed(nn.Module):
        def __init__(self, unpack: bool) -> None:
            super().__init__()
            self.lstm, self.unpack = nn.LSTM(4, 4, 2, dropout=0.5, batch_first=True), unpack

        def forward(self, x: PackedSequence) -> Any:
            out, _ = self.lstm(x)
            return pad_packed_sequence(out, batch_first=True)[0] if self.unpack else out

    torch.manual_seed(0)
    x = pack_padded_sequence(torch.randn(3, 5, 4), torch.tensor([5, 3, 2]), batch_first=True)
    with pytest.raises(TypeError, match=r'PackedSequence, which cannot be repeated; use strategy="sequential"'):
        forward_passes(Packed(True), x)
    out = forward_passes(Packed(True), x, strategy="sequential")
    assert out.shape == (2, 3, 5, 4)
    assert not torch.equal(out[0], out[1])
    with pytest.raises(ValueError, match=r"but PackedSequence; .*unpack"):
        forward_passes(Packed(False), x, strategy="sequential")
    nested = torch.nested.nested_tensor([torch.ones(2), torch.ones(3)], layout=torch.jagged)
    with pytest.raises(TypeError, match="nested tensor"):
        forward_passes(nn.Dropout(), nested)


# BatchNorm.


@pytest.mark.parametrize("momentum", [0.1, 0.7, None])
@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.shows("torch", "BatchNorm")
def test_trap_11_statistics_move_as_one_plain_forward_moves_them(strategy: Strategy, momentum: float | None) -> None:
    torch.manual_seed(0)
    norm = nn.BatchNorm1d(4, momentum=momentum)
    model = nn.Sequential(nn.Linear(6, 4), norm, norm, nn.Dropout(0.5)).double()
    twin = copy.deepcopy(model)
    for step in range(3):
        x = torch.randn(5, 6, dtype=torch.float64)
        forward_passes(model, x, passes=3, strategy=strategy)
        twin(x)
        assert norm.num_batches_tracked == 2 * (step + 1)
        torch.testing.assert_close(statistics(model), statistics(twin), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("strategy", ["concat", "sequential"])
def test_trap_11_other_norms_and_images(strategy: Strategy) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.BatchNorm2d(3),
        nn.InstanceNorm2d(3, track_running_stats=True),
        nn.SyncBatchNorm(3).eval(),
        nn.BatchNorm2d(3, track_running_stats=False),
        nn.Dropout(0.5),
    )
    twin, x = copy.deepcopy(model), torch.randn(2, 3, 4, 4)
    forward_passes(model, x, passes=4, strategy=strategy)
    twin(x)
    torch.testing.assert_close(statistics(model), statistics(twin), rtol=1e-6, atol=1e-7)
    assert not model[0]._forward_hooks
    assert not model[0]._forward_pre_hooks


def test_trap_11_backward_works_after_the_statistics_were_set_right() -> None:
    for strategy in ("concat", "sequential"):
        model = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5), nn.BatchNorm1d(4), nn.Linear(4, 2))
        forward_passes(model, torch.randn(5, 4), strategy=strategy).sum().backward()
        assert model[0].weight.grad is not None


def test_trap_11_statistics_are_those_of_the_first_pass_after_an_error() -> None:
    class Failing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.drop, self.calls = nn.BatchNorm1d(4), nn.Dropout(0.5), 0

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.drop(self.norm(x))
            self.calls += 1
            if self.calls == 2:
                raise ZeroDivisionError
            return out

    model, x = Failing(), torch.randn(5, 4)
    with pytest.raises(ZeroDivisionError):
        forward_passes(model, x, strategy="sequential")
    assert model.norm.num_batches_tracked == 1


# Rates for each pass.


def test_rates_for_each_pass_are_used_in_order_and_restored() -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(6, 2000), nn.Dropout(0.1)), torch.ones(3, 6)
    set_dropout(model, (0.2, 0.7))
    assert explain_passes(model, x).strategy == "shared"
    zeros = (forward_passes(model, x) == 0).double().mean((1, 2))
    torch.testing.assert_close(zeros, torch.tensor([0.2, 0.7], dtype=torch.float64), atol=0.03, rtol=0)
    assert model[1].p == 0.2
    with pytest.raises(ValueError, match=r"2 rates \(0.2, 0.7\), but there are 3 passes"):
        forward_passes(model, x, passes=3)
    with pytest.raises(RuntimeError, match=r'rate of its own.* Use "sequential" or "shared"'):
        forward_passes(model, x, strategy="concat")


# Several models.


@pytest.mark.shows("torch", "pair")
def test_two_models_make_one_pass_each_and_both_are_trained() -> None:
    torch.manual_seed(0)
    models, x = (mlp(0.0), nn.Sequential(nn.Linear(6, 3))), torch.randn(5, 6)
    for several in (models, list(models), nn.ModuleList(models)):
        out = forward_passes(several, x)
        assert torch.equal(out, torch.stack([m(x) for m in models]))
    forward_passes(models, x).square().sum().backward()
    assert all(p.grad is not None for m in models for p in m.parameters())


def test_several_models_that_do_not_fit_are_refused() -> None:
    x = torch.randn(5, 6)
    one, other = mlp(), mlp()
    with pytest.raises(ValueError, match="passes is 2, but there are 3 models; pass passes=3"):
        forward_passes([one, other, mlp()], x)
    with pytest.raises(ValueError, match="listed twice"):
        forward_passes([one, one], x)
    with pytest.raises(ValueError, match=r"shapes \(5, 3\), \(5, 32\)"):
        forward_passes([one, one[0]], x)
    with pytest.raises(ValueError, match='strategy is "concat"'):
        forward_passes([one, other], x, strategy="concat")
    with pytest.raises(TypeError, match="model is an empty list"):
        forward_passes([], x)


# Warnings and mistakes.


@pytest.mark.shows("torch", "no effect")
def test_trap_13_identical_outputs_are_told_once() -> None:
    class Unused(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.drop, self.linear = nn.Dropout(0.5), nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Tensor:
            self.drop(x)
            out: Tensor = self.linear(x)
            return out

    model, x = Unused(), torch.randn(3, 6)
    with no_effect_expected("on Unused: its passes gave identical outputs .*stochastic_layers"):
        forward_passes(model, x)
    forward_passes(model, x)


class Adapted(nn.Module):
    """A frozen layer with an adapter that starts at zero, as LoRA's do; nothing else draws."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.drop = nn.Linear(6, 2).requires_grad_(False), nn.Dropout(0.5)
        self.down, self.up = nn.Linear(6, 3, bias=False), nn.Linear(3, 2, bias=False)
        nn.init.zeros_(self.up.weight)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.linear(x) + self.up(self.down(self.drop(x)))
        return out


def test_trap_13_a_branch_that_starts_at_zero_is_waited_for() -> None:
    torch.manual_seed(0)
    model, x = Adapted(), torch.randn(3, 6)
    for _ in range(3):  # micro-batches, or steps of a warm-up from 0
        out = forward_passes(model, x)
        assert torch.equal(out[0], out[1])
    out.square().sum().backward()
    torch.optim.SGD(model.up.parameters(), lr=1.0).step()
    out = forward_passes(model, x)
    assert not torch.equal(out[0], out[1])


def test_trap_13_a_branch_that_has_moved_to_no_effect_is_told() -> None:
    model, x = Adapted(), torch.randn(3, 6)
    model.down.requires_grad_(False).weight.zero_()  # what is frozen at zero stays there
    forward_passes(model, x)
    with torch.no_grad():
        model.up.weight += 1
    with no_effect_expected("on Adapted: its passes gave identical outputs"):
        forward_passes(model, x)


def test_trap_13_eval_mode_is_told_with_the_remedy_and_one_pass_is_silent() -> None:
    model, x = mlp().eval(), torch.randn(3, 6)
    forward_passes(model, x, passes=1)
    with no_effect_expected(r"call model.train\(\) first"):
        out = forward_passes(model, x)
    assert torch.equal(out[0], out[1])


@pytest.mark.parametrize("passes", [0, -1, True, 2.0])
def test_passes_must_be_a_count(passes: Any) -> None:
    with pytest.raises(ValueError, match="expected a whole number of at least 1"):
        forward_passes(mlp(), torch.randn(3, 6), passes=passes)


def test_mistakes_are_named() -> None:
    x = torch.randn(3, 6)
    with pytest.raises(ValueError, match="strategy is 'vmap'; expected one of auto, concat"):
        forward_passes(mlp(), x, strategy="vmap")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"model is function; expected a torch.nn.Module"):
        forward_passes(lambda y: y, x)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="no tensor with a batch axis"):
        forward_passes(mlp(), 3)

    class Transposed(nn.Dropout):
        def forward(self, input: Tensor) -> Tensor:
            return super().forward(input).T

    with pytest.raises(ValueError, match=r"returned nothing with the 3 rows of the batch, but \(7, 3\)"):
        forward_passes(Transposed(), torch.ones(3, 7), strategy="sequential")


def test_an_error_of_the_model_comes_through() -> None:
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        forward_passes(mlp(), torch.randn(3, 7))


def test_what_is_remembered_of_a_model_does_not_keep_it() -> None:
    model = nn.BatchNorm1d(6)
    with no_effect_expected("no stochastic layer"):
        forward_passes(model, torch.randn(3, 6))
    reference = weakref.ref(model)
    del model
    gc.collect()
    assert reference() is None


# Hosts: DistributedDataParallel, torch.compile, checkpointing, autocast.


@pytest.mark.usefixtures("process_group")
def test_trap_10_distributed_models_make_one_forward() -> None:
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 2))
    model, x = DistributedDataParallel(copy.deepcopy(plain)), torch.randn(3, 6)
    assert explain_passes(model, x).strategy == "concat"
    assert "one forward for each backward" in explain_passes(model, x).reason
    torch.manual_seed(1)
    forward_passes(model, x).square().mean().backward()
    torch.manual_seed(1)
    forward_passes(plain, x, strategy="concat").square().mean().backward()
    for wrapped, p in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(wrapped.grad, p.grad)
    torch.testing.assert_close(statistics(model.module), statistics(plain))
    for strategy in ("sequential", "shared"):
        with pytest.raises(RuntimeError, match=r'DistributedDataParallel expects one.* Use "concat"'):
            forward_passes(model, x, strategy=strategy)
    set_dropout(model, (0.1, 0.2))
    with pytest.raises(RuntimeError, match=r"cannot be run: concat: each pass has .*; sequential: Distributed"):
        forward_passes(model, x)


@pytest.mark.shows("torch", "compiled")
def test_compiled_models_repeat_the_batch_without_a_trial() -> None:
    torch.manual_seed(0)
    plain, x = mlp(), torch.randn(3, 6)
    model: Any = torch.compile(plain, backend="aot_eager")
    assert explain_passes(model, x).strategy == "concat"
    assert "compiled" in explain_passes(model, x).refusals["shared"]
    out = forward_passes(model, x)
    assert out.shape == (2, 3, 3)
    assert not torch.equal(out[0], out[1])
    out.sum().backward()
    assert plain[0].weight.grad is not None


@pytest.mark.xfail(
    torch.__version__ < "2.15", strict=False, reason="older Dynamo fails on frames it should skip: compile the model"
)
def test_a_compiled_step_may_contain_the_passes() -> None:
    torch.manual_seed(0)
    model, x = mlp(), torch.randn(3, 6)
    step = torch.compile(lambda y: forward_passes(model, y).var(0).mean(), backend="eager")
    loss = step(x)
    assert loss > 0
    loss.backward()


class Checkpointed(nn.Module):
    def __init__(self, active: bool) -> None:
        super().__init__()
        self.body, self.head, self.active = mlp(), nn.Linear(3, 2), active

    def forward(self, x: Tensor) -> Tensor:
        y = checkpoint(self.body, x, use_reentrant=False) if self.active else self.body(x)
        out: Tensor = self.head(y)
        return out


@pytest.mark.parametrize("strategy", ["auto", "concat", "sequential"])
@pytest.mark.shows("torch", "checkpointing")
def test_activation_checkpointing_changes_nothing(strategy: Strategy) -> None:
    x, grads = torch.randn(3, 6), []
    for active in (True, False):
        torch.manual_seed(0)
        model = Checkpointed(active)
        chosen: Strategy = "concat" if strategy == "auto" and not active else strategy
        torch.manual_seed(1)
        forward_passes(model, x, strategy=chosen).square().sum().backward()
        grads.append([p.grad for p in model.parameters()])
    torch.testing.assert_close(grads[0], grads[1])


@pytest.mark.parametrize("strategy", ["auto", *STRATEGIES])
@pytest.mark.shows("torch", "mixed precision")
def test_autocast_keeps_gradients_through_the_trial(strategy: Strategy) -> None:
    torch.manual_seed(0)
    model, x = mlp(), torch.randn(3, 6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = forward_passes(model, x, strategy=strategy)
        assert out.is_floating_point()
        out.float().square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())
