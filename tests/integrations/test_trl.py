"""Supervised fine-tuning with TRL: its data and evaluation, our loss."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from tokenizers import Tokenizer, models, pre_tokenizers
from torch.nn import functional as F
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import SFTTrainer

from hf_training import logged
from rdrop import NoEffectWarning
from rdrop.integrations.trl import RDropConfig, RDropSFTTrainer

WORDS = 30
PAD, END = WORDS - 2, WORDS - 1


def tokenizer() -> PreTrainedTokenizerFast:
    words = {f"w{i}": i for i in range(PAD)} | {"<pad>": PAD, "<end>": END}
    core = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    build: Any = PreTrainedTokenizerFast
    tokens: PreTrainedTokenizerFast = build(tokenizer_object=core, pad_token="<pad>", eos_token="<end>")
    return tokens


def texts() -> Dataset:
    numbers = torch.randint(PAD, (8, 9), generator=torch.Generator().manual_seed(0)).tolist()
    return Dataset.from_list([{"text": " ".join(f"w{i}" for i in row[: 3 + n % 6])} for n, row in enumerate(numbers)])


def model(dropout: float = 0.2) -> GPT2LMHeadModel:
    torch.manual_seed(0)
    config: dict[str, Any] = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), dropout)
    config |= {"vocab_size": WORDS, "n_embd": 8, "n_layer": 1, "n_head": 2, "bos_token_id": END, "eos_token_id": END}
    return GPT2LMHeadModel(GPT2Config(**config))


def arguments(folder: Path, **options: Any) -> SFTConfig:
    usual: dict[str, Any] = {
        "max_steps": 2, "per_device_train_batch_size": 4, "logging_steps": 1, "report_to": "none", "use_cpu": True,
        "save_strategy": "no", "disable_tqdm": True, "max_length": 16, "bf16": False, "learning_rate": 1e-2,
    }  # fmt: skip
    return SFTConfig(str(folder), **(usual | options))


def trained(network: GPT2LMHeadModel, args: SFTConfig, rdrop: RDropConfig, **options: Any) -> RDropSFTTrainer:
    options |= {"train_dataset": texts(), "processing_class": tokenizer()}
    trainer = RDropSFTTrainer(network, args, rdrop=rdrop, **options)
    trainer.train()
    return trainer


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.shows("TRL", "accumulation", "masks")
def test_the_loss_is_the_mean_over_the_tokens_that_are_predicted(accumulation: int, tmp_path: Path) -> None:
    network = model(0.0)
    rows = [[*tokenizer()(text)["input_ids"], END] for text in texts()["text"]]
    losses = []
    for row in rows:
        ids = torch.tensor(row)
        losses.append(F.cross_entropy(network(ids[None]).logits[0, :-1], ids[1:], reduction="none").detach())
    args = arguments(
        tmp_path, max_steps=1, per_device_train_batch_size=8 // accumulation, gradient_accumulation_steps=accumulation
    )
    trainer = trained(network, args, RDropConfig(passes=1))
    assert logged(trainer, "loss") == pytest.approx([torch.cat(losses).mean().item()], rel=1e-4)


@pytest.mark.shows("TRL", "evaluation", "log")
def test_two_passes_are_tied_and_evaluation_is_that_of_trl(tmp_path: Path) -> None:
    network = model()
    trainer = trained(network, arguments(tmp_path), RDropConfig(alpha=2.0))
    parts = zip(*(logged(trainer, name) for name in ("loss", "task_loss", "divergence")), strict=True)
    for loss, task_loss, divergence in parts:
        assert divergence > 0
        assert loss == pytest.approx(task_loss + 2.0 * divergence, rel=1e-4)
    plain: Any = SFTTrainer(network, arguments(tmp_path), train_dataset=texts(), processing_class=tokenizer())
    ours, theirs = (each.evaluate(each.train_dataset) for each in (trainer, plain))
    told = ("eval_loss", "eval_mean_token_accuracy", "eval_entropy")
    names = [name for name in told if name in theirs]  # which differ by release
    assert "eval_loss" in names
    assert [ours[name] for name in names] == pytest.approx([theirs[name] for name in names], rel=1e-5)


@pytest.mark.shows("TRL", "no effect")
def test_dropout_that_is_off_is_spoken_of(tmp_path: Path) -> None:
    with pytest.warns(NoEffectWarning, match="R-Drop has no effect on GPT2LMHeadModel.*every rate is 0"):
        trained(model(0.0), arguments(tmp_path, max_steps=1), RDropConfig())


@pytest.mark.shows("TRL", "adapters")
def test_the_dropout_of_an_adapter_counts(tmp_path: Path) -> None:
    adapter = LoraConfig(r=2, lora_dropout=0.5, init_lora_weights=False, target_modules=["c_attn"], fan_in_fan_out=True)
    trainer = trained(model(0.0), arguments(tmp_path), RDropConfig(), peft_config=adapter)
    assert min(logged(trainer, "divergence")) > 0


def test_another_loss_type_is_refused(tmp_path: Path) -> None:
    args = arguments(tmp_path, loss_type="dft")
    with pytest.raises(ValueError, match="loss_type is 'dft'"):
        RDropSFTTrainer(model(), args, rdrop=RDropConfig(), train_dataset=texts(), processing_class=tokenizer())
