"""The loss of language models on their hidden states: equal to that on their logits, family by family."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    BertConfig,
    BertForMaskedLM,
    BertForTokenClassification,
    CohereConfig,
    CohereForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GraniteConfig,
    GraniteForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MarianConfig,
    MarianMTModel,
    T5Config,
    T5ForConditionalGeneration,
)

from hf_training import arguments, logged
from rdrop.integrations import transformers as adapter
from rdrop.integrations.language_head import LanguageHead, find_language_head
from rdrop.integrations.transformers import RDropConfig, RDropTrainer

V, B, T = 50, 8, 6
SMALL: dict[str, Any] = {
    "vocab_size": V, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
    "num_key_value_heads": 2, "head_dim": 8, "attention_dropout": 0.3, "pad_token_id": 0,
}  # fmt: skip
SEQUENCES: dict[str, Any] = {
    "vocab_size": V, "d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2,
    "decoder_attention_heads": 2, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "dropout": 0.3, "pad_token_id": 0,
    "eos_token_id": 1, "decoder_start_token_id": 0, "max_position_embeddings": 32,
}  # fmt: skip


T5: dict[str, Any] = {
    "vocab_size": V, "d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_heads": 2, "decoder_start_token_id": 0,
    "dropout_rate": 0.3,
}  # fmt: skip


def with_final_bias(model: Any) -> Any:
    model.final_logits_bias.normal_()
    return model


FAMILIES: dict[str, Callable[[], Any]] = {
    "gpt2": lambda: GPT2LMHeadModel(GPT2Config(vocab_size=V, n_embd=16, n_layer=1, n_head=2, resid_pdrop=0.3)),
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SMALL)),
    "gemma2, a cap": lambda: Gemma2ForCausalLM(Gemma2Config(**SMALL, final_logit_softcapping=0.5)),
    "cohere, a factor": lambda: CohereForCausalLM(CohereConfig(**SMALL, logit_scale=0.3)),
    "granite, a divisor": lambda: GraniteForCausalLM(GraniteConfig(**SMALL, logits_scaling=4.0)),
    "bert, a bias": lambda: BertForMaskedLM(
        BertConfig(vocab_size=V, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32)
    ),
    "t5, tied and scaled": lambda: T5ForConditionalGeneration(T5Config(**T5)),
    "marian, a final bias": lambda: with_final_bias(MarianMTModel(MarianConfig(**SEQUENCES))),
    "bart, a final bias": lambda: with_final_bias(BartForConditionalGeneration(BartConfig(**SEQUENCES))),
}


def rows(seed: int = 0) -> list[dict[str, Tensor]]:
    """Sentences that are their own answers, a third of their labels ignored."""
    generator = torch.Generator().manual_seed(seed)
    found = []
    for _ in range(2 * B):
        ids = torch.randint(2, V, (T,), generator=generator)
        labels = ids.masked_fill(torch.rand(T, generator=generator) < 0.3, -100)
        found.append({"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels})
    return found


def train(folder: Path, family: str, linear_head: bool | None, **options: Any) -> RDropTrainer:
    torch.manual_seed(0)
    passes = {name: options.pop(name) for name in ("strategy", "fraction", "branch_at") if name in options}
    config = RDropConfig(alpha=2.0, linear_head=linear_head, **passes)
    model = FAMILIES[family]()
    if options.pop("checkpointing", False):
        renamed = "activation_checkpointing_enable"
        getattr(model, renamed if hasattr(model, renamed) else "gradient_checkpointing_enable")()
    options["remove_unused_columns"] = False
    trainer = RDropTrainer(model, arguments(folder, **options), train_dataset=rows(), rdrop=config)
    torch.manual_seed(1)
    trainer.train()
    return trainer


def assert_equal(one: RDropTrainer, two: RDropTrainer) -> None:
    for part in ("loss", "task_loss", "divergence", "agreement"):
        assert logged(one, part) == pytest.approx(logged(two, part), rel=1e-4)
    assert max(logged(one, "divergence")) > 1e-7
    assert one.model is not None
    assert two.model is not None
    for (name, weight), other in zip(one.model.state_dict().items(), two.model.state_dict().values(), strict=True):
        torch.testing.assert_close(weight, other, rtol=1e-3, atol=1e-5, msg=name)


@pytest.mark.parametrize("family", FAMILIES)
def test_training_is_that_on_the_logits(tmp_path: Path, family: str) -> None:
    options: dict[str, Any] = {"optim": "sgd", "label_smoothing_factor": 0.1}
    with_head, plain = (train(tmp_path, family, linear_head, **options) for linear_head in (True, False))
    assert isinstance(with_head._head, LanguageHead)
    assert plain._head is None
    assert_equal(with_head, plain)


@pytest.mark.parametrize("strategy", ["concat", "sequential"])
def test_in_micro_batches_and_with_every_strategy(tmp_path: Path, strategy: str) -> None:
    options: dict[str, Any] = {
        "optim": "sgd", "strategy": strategy, "gradient_accumulation_steps": 2, "per_device_train_batch_size": 4,
        "checkpointing": True,
    }  # fmt: skip
    for family in ("gpt2", "marian, a final bias"):
        assert_equal(*(train(tmp_path, family, linear_head, **options) for linear_head in (True, False)))


@pytest.mark.parametrize("passes", [{"strategy": "shared"}, {"fraction": 0.3}, {"branch_at": -1}])
def test_with_cheaper_passes(tmp_path: Path, passes: dict[str, Any]) -> None:
    for family in ("gpt2", "marian, a final bias"):
        assert_equal(*(train(tmp_path, family, linear_head, optim="sgd", **passes) for linear_head in (True, False)))


def test_large_logits_are_never_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shapes = []
    head = GPT2LMHeadModel.forward

    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        outputs = head(self, *args, **kwargs)
        if self.training:
            shapes.append(outputs.logits.shape[-1])
        return outputs

    monkeypatch.setattr(GPT2LMHeadModel, "forward", forward)
    train(tmp_path, "gpt2", None)
    assert set(shapes) == {V}
    shapes.clear()
    monkeypatch.setattr(adapter, "LARGE_LOGITS", 2 * B * T * V * 4)
    train(tmp_path, "gpt2", None)
    assert set(shapes) == {16}
    shapes.clear()
    train(tmp_path, "gpt2", False)
    assert set(shapes) == {V}


def test_evaluation_gets_logits(tmp_path: Path) -> None:
    trainer = train(tmp_path, "bart, a final bias", True)
    assert trainer.predict(rows(1)).predictions[0].shape[-1] == V  # type: ignore[arg-type]


def batch() -> dict[str, Tensor]:
    return {"input_ids": torch.randint(2, V, (3, T))}


def test_what_is_looked_at_stays_as_it_was() -> None:
    model, inputs = FAMILIES["gemma2, a cap"]().train(), batch()
    state = torch.get_rng_state()
    assert isinstance(find_language_head(model, inputs), LanguageHead)
    assert torch.get_rng_state().equal(state)
    assert model.training
    assert model.config.final_logit_softcapping == 0.5
    assert "forward" not in model.lm_head.__dict__
    marian = FAMILIES["marian, a final bias"]()
    before = marian.final_logits_bias.clone()
    head = find_language_head(marian, {**batch(), "decoder_input_ids": torch.randint(2, V, (3, T))})
    assert isinstance(head, LanguageHead)
    with pytest.raises(KeyError), head.left_out():
        raise KeyError
    assert marian.final_logits_bias.equal(before)


class Folded(GPT2LMHeadModel):  # type: ignore[no-untyped-call]
    """Does what no other model does."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        outputs = super().forward(*args, **kwargs)
        outputs.logits = outputs.logits.sin()
        return outputs


def test_what_is_not_known_is_refused(tmp_path: Path) -> None:
    config = GPT2Config(vocab_size=V, n_embd=16, n_layer=1, n_head=2)
    refused = find_language_head(Folded(config), batch())
    assert refused == "Folded changes the output of its last layer in a way that is not known here"
    model = GPT2LMHeadModel(config)
    model.lm_head = nn.Sequential(model.lm_head)
    assert "has a Sequential as its output embeddings" in str(find_language_head(model, batch()))
    model = GPT2LMHeadModel(config)
    model.lm_head.weight = nn.Parameter(torch.zeros(0))  # as DeepSpeed leaves it between forward passes
    assert "is in parts, each on a process of its own" in str(find_language_head(model, batch()))
    tagger = BertForTokenClassification(
        BertConfig(vocab_size=V, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32)
    )
    assert "has no layer as its output embeddings" in str(find_language_head(tagger, batch()))

    wanted = RDropConfig(linear_head=True)
    folder = arguments(tmp_path, remove_unused_columns=False)
    trainer = RDropTrainer(Folded(config), folder, train_dataset=rows(), rdrop=wanted)
    with pytest.raises(ValueError, match=r"linear_head is True, but the loss cannot be .* Folded changes"):
        trainer.train()
