"""Adapters of PEFT: their dropout is randomness like any other, and what is below them is found."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    T5Config,
    T5ForConditionalGeneration,
)

from hf_training import arguments, logged
from rdrop import forward_passes, rdrop_loss, stochastic_layers
from rdrop.integrations.transformers import RDropConfig, RDropTrainer

B, T, WORDS = 8, 6, 11


def adapted(model: Any, **options: Any) -> Any:
    """The model with adapters that draw, and nothing else that does."""
    torch.manual_seed(0)
    return get_peft_model(model, LoraConfig(r=2, lora_dropout=0.4, init_lora_weights=False, **options))


def classifier() -> Any:
    config: dict[str, Any] = {
        "hidden_size": 8,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 8,
    }
    config |= {"vocab_size": WORDS, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    torch.manual_seed(0)
    return adapted(BertForSequenceClassification(BertConfig(**config)), task_type="SEQ_CLS")


def rows(*labels: int) -> Any:
    generator = torch.Generator().manual_seed(1)
    words = torch.randint(1, WORDS, (B, T), generator=generator)
    targets = torch.randint(0, 2, (B, *labels), generator=generator)
    return [{"input_ids": words[i], "labels": targets[i]} for i in range(B)]


@pytest.mark.shows("torch", "adapters")
def test_the_dropout_of_adapters_is_listed() -> None:
    found = stochastic_layers(classifier())
    drawing = [layer for layer in found if layer.rate]
    assert drawing
    assert all("lora_dropout" in layer.name and layer.rate == 0.4 for layer in drawing)


@pytest.mark.shows("transformers", "adapters")
def test_a_step_is_that_of_a_loop_and_moves_adapters_alone(tmp_path: Path) -> None:
    model = classifier()
    twin, start = copy.deepcopy(model).train(), copy.deepcopy(model).state_dict()
    data = rows()
    options = arguments(tmp_path, max_steps=1, optim="sgd", learning_rate=1.0, per_device_train_batch_size=1)
    trainer = RDropTrainer(model, options, rdrop=RDropConfig(alpha=2.0), train_dataset=data[:1])
    trainer.train()
    moved = {name for name, weight in model.state_dict().items() if not torch.equal(weight, start[name])}
    assert moved
    assert all("lora_" in name or "classifier" in name for name in moved)
    assert min(logged(trainer, "divergence")) > 0
    batch = {name: torch.stack([row[name] for row in data]) for name in data[0]}
    labels = batch.pop("labels")
    torch.manual_seed(5)
    found = trainer.compute_loss(twin, {**batch, "labels": labels})
    torch.manual_seed(5)
    expected = rdrop_loss(forward_passes(twin, input_ids=batch["input_ids"])["logits"], labels, alpha=2.0)
    torch.testing.assert_close(found, expected.loss)


@pytest.mark.parametrize("linear_head", [False, True])
def test_language_models_shift_and_find_their_head(linear_head: bool, tmp_path: Path) -> None:
    rates: dict[str, Any] = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
    rates |= {"bos_token_id": 0, "eos_token_id": 0}
    model = GPT2LMHeadModel(GPT2Config(vocab_size=WORDS, n_embd=8, n_layer=1, n_head=2, **rates))
    model = adapted(model, target_modules=["c_attn"], fan_in_fan_out=True, task_type="CAUSAL_LM").train()
    batch = {name: torch.stack([row[name] for row in rows(T)]) for name in ("input_ids", "labels")}
    config = RDropConfig(passes=1, linear_head=linear_head)
    trainer = RDropTrainer(model, arguments(tmp_path), rdrop=config)
    torch.manual_seed(5)
    found = trainer.compute_loss(model, batch)
    torch.manual_seed(5)
    torch.testing.assert_close(found, model(**batch).loss)


def test_decoders_get_their_input_from_the_labels(tmp_path: Path) -> None:
    config = T5Config(vocab_size=WORDS, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2, dropout_rate=0.0)
    config.decoder_start_token_id = config.pad_token_id = 0
    model = adapted(T5ForConditionalGeneration(config), target_modules=["q", "v"], task_type="SEQ_2_SEQ_LM").train()
    batch = {name: torch.stack([row[name] for row in rows(4)]) for name in ("input_ids", "labels")}
    trainer = RDropTrainer(model, arguments(tmp_path), rdrop=RDropConfig(passes=1))
    torch.manual_seed(5)
    found = trainer.compute_loss(model, batch)
    torch.manual_seed(5)
    torch.testing.assert_close(found, model(**batch).loss)
