"""Adapters of PEFT: their dropout is randomness like any other, and what is below them is found."""

from __future__ import annotations

import copy
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.nn.functional import cross_entropy
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    T5Config,
    T5ForConditionalGeneration,
)

from hf_training import arguments, logged
from rdrop import NoEffectWarning, forward_passes, rdrop_loss, stochastic_layers
from rdrop.integrations.transformers import RDropConfig, RDropTrainer

B, T, WORDS = 8, 6, 11


def adapted(model: Any, **options: Any) -> Any:
    """The model with adapters that draw, and nothing else that does."""
    torch.manual_seed(0)
    return get_peft_model(model, LoraConfig(**{"r": 2, "lora_dropout": 0.4, "init_lora_weights": False, **options}))


def classifier(**options: Any) -> Any:
    config: dict[str, Any] = {
        "hidden_size": 8,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 8,
    }
    config |= {"vocab_size": WORDS, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    torch.manual_seed(0)
    return adapted(BertForSequenceClassification(BertConfig(**config)), task_type="SEQ_CLS", **options)


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
@pytest.mark.shows("PEFT", "steps", "log", "adapters")
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
@pytest.mark.shows("PEFT", "plain")
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


@pytest.mark.shows("PEFT", "no effect", "evaluation")
def test_new_adapters_are_waited_for_and_adapters_without_dropout_spoken_of(tmp_path: Path) -> None:
    """As PEFT makes them their branches are zero, so that the passes of the first step are equal."""
    data, rdrop = rows(), RDropConfig(alpha=2.0)
    options = arguments(tmp_path, max_steps=4, logging_steps=1, learning_rate=0.1, per_device_train_batch_size=4)
    for rate in (0.4, 0.0):
        model = classifier(lora_dropout=rate, init_lora_weights=True)
        trainer = RDropTrainer(model, options, rdrop=rdrop, train_dataset=data, eval_dataset=data)
        with nullcontext() if rate else pytest.warns(NoEffectWarning, match="R-Drop has no effect"):
            trainer.train()
        found = logged(trainer, "divergence")
        assert found[0] == 0
        assert (found[-1] > 0) == (rate > 0)
        labels = torch.stack([row["labels"] for row in data])
        with torch.no_grad():
            answers = model.eval()(torch.stack([row["input_ids"] for row in data])).logits
        assert trainer.evaluate()["eval_loss"] == pytest.approx(cross_entropy(answers, labels).item(), rel=1e-5)


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
