"""What the Trainer is told beside the objective (precision, compilation, checkpoints) changes no step of R-Drop."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import BertConfig, BertForSequenceClassification, PreTrainedModel

from hf_training import arguments, logged
from rdrop import forward_passes, rdrop_loss
from rdrop.integrations.transformers import RDropConfig, RDropTrainer

ROWS, STEPS, RATE = 8, 3, 0.1
SGD: dict[str, Any] = {"optim": "sgd", "learning_rate": RATE, "per_device_train_batch_size": ROWS, "max_steps": STEPS}
RDROP = RDropConfig(alpha=2.0, strategy="concat")


def classifier() -> PreTrainedModel:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "num_labels": 3}
    config = BertConfig(vocab_size=50, intermediate_size=16, initializer_range=0.3, **sizes)
    return BertForSequenceClassification(config)


def texts() -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(50, (ROWS, 5), generator=generator)
    return [{"input_ids": row, "labels": torch.tensor(i % 3)} for i, row in enumerate(ids)]


def trained(folder: Path, rdrop: RDropConfig = RDROP, **options: Any) -> RDropTrainer:
    rows: Any = texts()
    trainer = RDropTrainer(classifier(), arguments(folder, **(SGD | options)), rdrop=rdrop, train_dataset=rows)
    # In order, and with the masks of the same random numbers, whatever has been drawn before.
    trainer._get_train_sampler = lambda *_: torch.utils.data.SequentialSampler(rows)  # type: ignore[method-assign]
    torch.manual_seed(2)
    trainer.train(resume_from_checkpoint=options.get("resume_from_checkpoint"))
    return trainer


def weights(trainer: RDropTrainer) -> dict[str, Tensor]:
    model: Any = trainer.accelerator.unwrap_model(trainer.model)
    return dict(model.state_dict())


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tensor]:
    """The weights of a training with none of these."""
    return weights(trained(tmp_path_factory.mktemp("plain")))


@pytest.mark.shows("transformers", "checkpointing")
def test_gradient_checkpointing_takes_the_same_steps(plain: dict[str, Tensor], tmp_path: Path) -> None:
    trainer = trained(tmp_path, gradient_checkpointing=True)
    assert trainer.model is not None
    assert trainer.model.is_gradient_checkpointing
    torch.testing.assert_close(weights(trainer), plain, rtol=1e-5, atol=1e-6)


@pytest.mark.shows("transformers", "compiled")
def test_a_compiled_model_takes_the_same_steps(plain: dict[str, Tensor], tmp_path: Path) -> None:
    trainer = trained(tmp_path, torch_compile=True, torch_compile_backend="eager")
    assert type(trainer.model_wrapped).__name__ == "OptimizedModule"
    torch.testing.assert_close(weights(trainer), plain, rtol=1e-5, atol=1e-6)


def test_auto_repeats_the_batch_of_a_compiled_model(plain: dict[str, Tensor], tmp_path: Path) -> None:
    auto = RDropConfig(alpha=2.0)
    torch.testing.assert_close(
        weights(trained(tmp_path, auto, torch_compile=True, torch_compile_backend="eager")),
        plain,
        rtol=1e-5,
        atol=1e-6,
    )


@pytest.mark.shows("transformers", "mixed precision")
def test_under_mixed_precision_the_steps_are_those_of_a_loop_under_autocast(
    plain: dict[str, Tensor], tmp_path: Path
) -> None:
    trainer = trained(tmp_path, bf16=True)
    model = classifier().train()
    torch.manual_seed(2)
    for _ in range(STEPS):
        (batch,) = trainer.get_train_dataloader()  # it draws a random number, too
        labels = batch.pop("labels")
        with torch.autocast("cpu", torch.bfloat16):
            logits = forward_passes(model, **batch, strategy="concat").logits
        loss = rdrop_loss(logits.float(), labels, alpha=2.0).loss
        model.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        with torch.no_grad():
            for weight in model.parameters():
                weight -= RATE * weight.grad
    found, expected = weights(trainer), model.state_dict()
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert any(not torch.allclose(found[name], plain[name], atol=1e-4) for name in plain)
    assert all(weight.dtype == torch.float32 for weight in found.values())


@pytest.mark.shows("transformers", "resume", "schedule")
def test_a_resumed_training_takes_the_steps_of_an_uninterrupted_one(tmp_path: Path) -> None:
    course = RDropConfig(alpha=2.0, schedule="linear_decay", strategy="concat")
    options: dict[str, Any] = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2, "lr_scheduler_type": "linear"}
    whole = trained(tmp_path, course, **options)
    states = copy.deepcopy(weights(whole))
    again = trained(tmp_path, course, **options, resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    torch.testing.assert_close(weights(again), states, rtol=1e-6, atol=1e-7)
    assert logged(again, "alpha") == pytest.approx(logged(whole, "alpha"))
