"""Randomness is found where it is, set where it counts, and switched without leaving a trace."""

from __future__ import annotations

import copy
import gc
import warnings
import weakref
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from timm.layers.drop import DropPath
from timm.layers.patch_dropout import PatchDropout
from torch import Tensor, nn
from torchvision.ops import StochasticDepth  # type: ignore[import-untyped]
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    BertConfig,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    Wav2Vec2Config,
    Wav2Vec2Model,
)

from rdrop import NoEffectWarning, StochasticLayer, set_dropout, stochastic_layers
from rdrop.stochastic import quiet_modules, randomness_off, randomness_on, rates_of_pass, warn_if_no_effect

SMALL: dict[str, Any] = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}


class StableDropout(nn.Module):
    """A look-alike, as in DeBERTa."""

    def __init__(self, drop_prob: float) -> None:
        super().__init__()
        self.drop_prob = drop_prob

    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.drop_prob, self.training)


class Block(nn.Module):
    """A functional rate reached through a helper, a property and a lambda; and one that is only stored."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(4)
        self.drop_rate = 0.3
        self.stored_dropout = 0.9
        self.use_dropout = True
        self._drop_hidden = 0.4

    @property
    def rate(self) -> float:
        return self._drop_hidden if self.training else 0.0

    def _mix(self, x: Tensor) -> Tensor:
        return (lambda y: F.dropout(y, self.drop_rate, self.training))(x)

    def forward(self, x: Tensor) -> Tensor:
        return self._mix(F.dropout(self.norm(x), self.rate))

    def describe(self) -> str:
        return f"{self.stored_dropout}"


def kinds(model: nn.Module) -> dict[str, str]:
    return {layer.name: layer.kind for layer in stochastic_layers(model)}


@pytest.mark.parametrize(
    "layer",
    [
        nn.Dropout(0.2),
        nn.Dropout1d(0.2),
        nn.Dropout2d(0.2),
        nn.Dropout3d(0.2),
        nn.AlphaDropout(0.2),
        nn.FeatureAlphaDropout(0.2),
        StableDropout(0.2),
    ],
)
def test_dropout_layers_and_look_alikes(layer: nn.Module) -> None:
    model = nn.Sequential(nn.Linear(2, 2), layer)
    assert stochastic_layers(model) == [StochasticLayer("1", "dropout", 0.2, True, None)]
    assert stochastic_layers(model.eval()) == [StochasticLayer("1", "dropout", 0.2, False, None)]


def test_a_rate_counts_only_if_forward_can_reach_the_code_that_reads_it() -> None:
    model = nn.Sequential(Block())
    assert kinds(model) == {"0.drop_rate": "functional dropout", "0._drop_hidden": "functional dropout"}


def test_a_shared_layer_is_listed_once() -> None:
    layer = nn.Dropout(0.1)
    assert len(stochastic_layers(nn.ModuleList([layer, layer]))) == 1


def test_attention_and_recurrent_layers_hold_functional_rates() -> None:
    model = nn.ModuleDict(
        {"attention": nn.MultiheadAttention(4, 2, dropout=0.2), "lstm": nn.LSTM(4, 4, 2, dropout=0.3)}
    )
    assert kinds(model) == {"attention.dropout": "functional dropout", "lstm.dropout": "recurrent dropout"}
    assert all(layer.active for layer in stochastic_layers(model))


def test_a_recurrent_network_of_one_layer_draws_nothing() -> None:
    model = nn.LSTM(4, 4, 1)
    model.dropout = 0.5
    assert [(layer.rate, layer.active) for layer in stochastic_layers(model)] == [(0.0, False)]


def test_random_activation_and_stochastic_depth() -> None:
    model = nn.Sequential(
        nn.RReLU(0.1, 0.3),
        StochasticDepth(0.2, "row"),
        StochasticDepth(0.2, "batch"),
        DropPath(0.2),
        PatchDropout(0.2),
    )
    assert list(kinds(model).values()) == [
        "random activation",
        "stochastic depth",
        "layer drop",
        "stochastic depth",
        "dropout",
    ]
    assert [round(layer.rate, 6) for layer in stochastic_layers(model)] == [0.2] * 5


def test_timm_models() -> None:
    resnet = timm.create_model("resnet10t", drop_rate=0.3)
    assert kinds(resnet) == {"drop_rate": "functional dropout"}
    vit = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=2, drop_path_rate=0.1)
    assert {name for name, kind in kinds(vit).items() if kind == "stochastic depth"} == {
        "blocks.1.drop_path1",
        "blocks.1.drop_path2",
    }


def test_transformers_models() -> None:
    bert = BertForSequenceClassification(BertConfig(**SMALL, vocab_size=20))
    assert set(kinds(bert).values()) == {"dropout"}
    assert len(stochastic_layers(bert)) == 8
    llama = LlamaForCausalLM(LlamaConfig(**SMALL, vocab_size=20, attention_dropout=0.1))
    assert kinds(llama) == {f"model.layers.{i}.self_attn.attention_dropout": "functional dropout" for i in (0, 1)}
    bart = BartForConditionalGeneration(
        BartConfig(d_model=16, encoder_layers=1, decoder_layers=1, vocab_size=20, encoder_layerdrop=0.2)
    )
    found = kinds(bart)
    assert found["model.encoder.layerdrop"] == "layer drop"
    assert found["model.encoder.dropout"] == "functional dropout"
    assert found["model.decoder.layers.0.encoder_attn.dropout"] == "functional dropout"


def test_a_rate_read_from_the_config_in_every_call_is_found_and_set_once() -> None:
    wav = Wav2Vec2Model(Wav2Vec2Config(**SMALL, vocab_size=20, conv_dim=(16,), conv_stride=(5,), conv_kernel=(10,)))
    assert kinds(wav)["encoder.config.layerdrop"] == "layer drop"

    class Reader(nn.Module):
        def __init__(self, config: BertConfig) -> None:
            super().__init__()
            self.config = config

        def forward(self, x: Tensor) -> Tensor:
            return F.dropout(x, self.config.attention_probs_dropout_prob, self.training)

    config = BertConfig(**SMALL, attention_probs_dropout_prob=0.1)
    model = nn.Sequential(Reader(config), Reader(config))
    assert kinds(model) == {"0.config.attention_probs_dropout_prob": "config"}
    assert set_dropout(model, 0.4) == ["0.config.attention_probs_dropout_prob"]
    assert config.attention_probs_dropout_prob == 0.4


def test_set_dropout_sets_every_dropout_rate_but_depth_only_by_name() -> None:
    model = nn.Sequential(nn.Dropout(0.1), nn.MultiheadAttention(4, 2), DropPath(0.2), nn.RReLU(), nn.LSTM(2, 2, 2))
    assert set_dropout(model, 0.25) == ["0", "1.dropout", "4.dropout"]
    assert [layer.rate for layer in stochastic_layers(model)[:3]] == [0.25, 0.25, 0.2]
    assert set_dropout(model, 0.5, only=["2"]) == ["2"]
    assert [layer.rate for layer in stochastic_layers(model)[:3]] == [0.25, 0.25, 0.5]


def test_rates_per_pass_are_kept_on_the_layers_and_cleared_by_a_number() -> None:
    model: Any = nn.Sequential(nn.Dropout(0.1), nn.Dropout(0.2))
    set_dropout(model, (0.3, 0.5), only=["1"])
    assert [layer.rates for layer in stochastic_layers(model)] == [None, (0.3, 0.5)]
    assert model[1].p == 0.3
    with rates_of_pass(model, 1, 2):
        assert (model[0].p, model[1].p) == (0.1, 0.5)
    assert model[1].p == 0.3
    assert stochastic_layers(copy.deepcopy(model))[1].rates == (0.3, 0.5)
    set_dropout(model, 0.4)
    assert [layer.rates for layer in stochastic_layers(model)] == [None, None]
    assert not hasattr(model[1], "rates_per_pass")


@pytest.mark.parametrize("rate", [1.0, -0.1, float("nan"), (), (0.1, 1.5)])
def test_a_rate_out_of_range_is_refused(rate: float | tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="0 <= rate < 1"):
        set_dropout(nn.Dropout(), rate)


def test_what_cannot_be_set_is_answered_with_what_can() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Dropout(), nn.RReLU())
    with pytest.raises(ValueError, match=r"'2'.* near it: 1"):
        set_dropout(model, 0.1, only=["2"])
    with pytest.raises(ValueError, match=r"Linear has no dropout rate to set; .*add nn.Dropout"):
        set_dropout(nn.Linear(2, 2), 0.1)
    with pytest.raises(ValueError, match=r"name what else is random in `only` \(0\)"):
        set_dropout(nn.Sequential(DropPath(0.1)), 0.1)


def test_randomness_on_draws_without_moving_statistics_and_restores_flags_after_an_error() -> None:
    torch.manual_seed(0)
    model: Any = nn.Sequential(Block(), nn.Linear(4, 4))
    model[1].eval()
    flags = [module.training for module in model.modules()]
    statistics = copy.deepcopy(model[0].norm.state_dict())
    x = torch.randn(8, 4)
    with randomness_on(model):
        assert model[0].training
        assert not model[0].norm.training
        assert not torch.equal(model(x), model(x))
    assert [module.training for module in model.modules()] == flags
    with pytest.raises(RuntimeError), randomness_on(model):
        model(torch.randn(8, 5))
    assert [module.training for module in model.modules()] == flags
    torch.testing.assert_close(model[0].norm.state_dict(), statistics, rtol=0, atol=0)


def test_randomness_on_leaves_a_normalisation_layer_in_evaluation_mode_even_if_it_holds_a_rate() -> None:
    class NormDropout(nn.BatchNorm1d):
        drop_rate = 0.0

        def forward(self, input: Tensor) -> Tensor:
            return F.dropout(super().forward(input), self.drop_rate, self.training)

    norm = NormDropout(4)
    norm.drop_rate = 0.5
    assert len(stochastic_layers(norm)) == 1  # the premise
    with randomness_on(norm):
        assert not norm.training


def test_randomness_off_is_evaluation_mode_and_restores_flags() -> None:
    model = nn.Sequential(nn.Dropout(0.5), nn.Dropout(0.5))
    model[0].eval()
    with randomness_off(model):
        assert not any(module.training for module in model.modules())
    assert [module.training for module in model.modules()] == [True, False, True]


def test_randomness_on_reaches_dropout_whose_rate_the_parent_reads() -> None:
    torch.manual_seed(0)
    config = BertConfig(**SMALL, vocab_size=20)
    config._attn_implementation = "sdpa"
    bert: Any = BertForSequenceClassification(config)
    bert.eval()
    set_dropout(bert, 0.0)
    set_dropout(bert, 0.5, only=["bert.encoder.layer.0.attention.self.dropout"])
    ids = torch.randint(0, 20, (2, 6))
    with torch.no_grad(), randomness_on(bert):
        assert not torch.equal(bert(ids).logits, bert(ids).logits)


def test_randomness_on_reaches_dropout_behind_the_fast_path_of_torch_encoder_layers() -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.5, batch_first=True)
    model = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False).eval()
    x = torch.randn(2, 3, 8)
    with torch.no_grad(), randomness_on(model):
        assert not torch.equal(model(x), model(x))
    assert torch.backends.mha.get_fastpath_enabled()


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (nn.Linear(2, 2), "on Linear.*no stochastic layer.*add nn.Dropout layers"),
        (nn.Sequential(nn.Dropout(0.0)), r"every rate is 0 \(0\); call rdrop.set_dropout"),
        (nn.Sequential(nn.Dropout(0.1)).eval(), r"call model.train\(\) first"),
        (nn.Sequential(nn.Dropout(0.1).eval()), r"\(0\) are in evaluation mode; call .train\(\) on them"),
    ],
)
def test_trap_13_no_effect_is_told_once_with_the_remedy(model: nn.Module, message: str) -> None:
    with pytest.warns(NoEffectWarning, match=message):
        assert not warn_if_no_effect(model)
    assert not warn_if_no_effect(model)  # a second warning would be an error here


def test_trap_13_each_cause_is_told_and_a_repair_is_noticed() -> None:
    model: Any = nn.Sequential(nn.Dropout(0.0))
    with pytest.warns(NoEffectWarning, match="every rate is 0"):
        assert not warn_if_no_effect(model)
    model[0].p = 0.1
    assert warn_if_no_effect(model)
    with pytest.warns(NoEffectWarning, match="evaluation mode"):
        assert not warn_if_no_effect(model.eval())
    assert warn_if_no_effect(model.train())


def test_layers_added_after_the_first_look_are_found_before_a_warning() -> None:
    model = nn.Sequential(nn.Dropout(0.0))
    with pytest.warns(NoEffectWarning):
        warn_if_no_effect(model)
    added = nn.Sequential(nn.Linear(2, 2))
    stochastic_layers(added)
    added.append(nn.Dropout(0.1))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert warn_if_no_effect(added)


def test_what_is_remembered_of_a_model_does_not_keep_it() -> None:
    model = nn.Dropout(0.1)
    warn_if_no_effect(model)
    reference = weakref.ref(model)
    del model
    gc.collect()
    assert reference() is None


def test_quiet_parts_are_the_largest_that_are_known_not_to_draw() -> None:
    class Unknown(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x

    trunk = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.0))
    layers = nn.ModuleList([nn.Linear(2, 2), nn.Dropout(0.5).eval()])
    inner = nn.Sequential(nn.ReLU(), Unknown())
    head = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.5), inner)
    model = nn.Sequential(trunk, layers, head)
    assert quiet_modules(model) == [trunk, *layers, head[0], inner[0]]  # a list is never called itself
    set_dropout(model, 0.1, only=["0.1"])
    assert quiet_modules(model) == [trunk[0], *layers, head[0], inner[0]]
    model.eval()
    assert quiet_modules(model) == [trunk, *layers, head[0], head[1], inner[0]]
