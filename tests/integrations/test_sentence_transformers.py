"""CrossEncoders: any loss of theirs in the mean over passes, and one forward for all passes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from sentence_transformers import CrossEncoder
from sentence_transformers.cross_encoder import CrossEncoderTrainer, CrossEncoderTrainingArguments
from sentence_transformers.cross_encoder.losses import (
    BinaryCrossEntropyLoss,
    CrossEntropyLoss,
    ListNetLoss,
    MSELoss,
    MultipleNegativesRankingLoss,
)
from torch import Tensor
from torch.nn import functional as F
from transformers import BertConfig, BertForSequenceClassification, BertTokenizer

from hf_training import logged
from rdrop import divergence
from rdrop.integrations.sentence_transformers import RDropConfig, RDropLoss

WORDS = 20
LEFT = [f"w{i} w{i + 1}" for i in range(4)]
RIGHT = [f"w{i + 2}" for i in range(4)]
PAIRS = list(zip(LEFT, RIGHT, strict=True))


def encoder(folder: Path, labels: int = 1, dropout: float = 0.3) -> CrossEncoder:
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"w{i}" for i in range(WORDS))]
    tokenizer: Any = BertTokenizer(vocab={word: i for i, word in enumerate(words)})
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config: dict[str, Any] = dict.fromkeys(("hidden_size", "intermediate_size"), 8) | {"vocab_size": len(words)}
    config |= {"num_hidden_layers": 1, "num_attention_heads": 2, "num_labels": labels, "initializer_range": 1.0}
    config |= {"hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout}
    BertForSequenceClassification(BertConfig(**config)).save_pretrained(folder)
    built: CrossEncoder = CrossEncoder(str(folder), device="cpu").train()
    return built


def scores_of(model: Any, pairs: list[tuple[str, str]]) -> Tensor:
    """Two passes in one doubled batch, by hand."""
    inputs = model.preprocess(pairs)
    doubled = {name: torch.cat([value, value]) for name, value in inputs.items() if isinstance(value, Tensor)}
    found: Tensor = model(doubled)["scores"]
    return found.view(2, len(pairs), -1)


@pytest.mark.shows("sentence-transformers", "steps", "own loss")
def test_one_label_is_tied_as_a_probability(tmp_path: Path) -> None:
    model = encoder(tmp_path)
    labels = torch.tensor([1.0, 0.0, 0.0, 1.0])
    loss = RDropLoss(BinaryCrossEntropyLoss(model), RDropConfig(alpha=2.0, strategy="concat"))
    torch.manual_seed(1)
    found = loss([LEFT, RIGHT], labels)
    torch.manual_seed(1)
    scores = scores_of(model, PAIRS).squeeze(-1)
    tied = divergence(scores, kind="binary")
    assert tied > 0.001
    torch.testing.assert_close(found["task_loss"], F.binary_cross_entropy_with_logits(scores, labels.expand(2, -1)))
    torch.testing.assert_close(found["weighted_divergence"], 2.0 * tied)


def test_several_labels_are_tied_as_classes(tmp_path: Path) -> None:
    model = encoder(tmp_path, labels=3)
    labels = torch.tensor([0, 2, 1, 1])
    loss = RDropLoss(CrossEntropyLoss(model), RDropConfig(alpha=2.0, strategy="concat"))
    torch.manual_seed(1)
    found = loss([LEFT, RIGHT], labels)
    torch.manual_seed(1)
    scores = scores_of(model, PAIRS)
    torch.testing.assert_close(found["task_loss"], F.cross_entropy(scores.flatten(0, 1), labels.repeat(2)))
    torch.testing.assert_close(found["weighted_divergence"], 2.0 * divergence(scores))


def test_numbers_are_tied_as_numbers(tmp_path: Path) -> None:
    model = encoder(tmp_path)
    loss = RDropLoss(MSELoss(model), RDropConfig(kind="regression", strategy="concat"))
    labels = torch.rand(4)
    torch.manual_seed(1)
    found = loss([LEFT, RIGHT], labels)
    torch.manual_seed(1)
    scores = scores_of(model, PAIRS).squeeze(-1)
    torch.testing.assert_close(found["weighted_divergence"], divergence(scores, kind="regression"))


def test_all_passes_have_the_same_negatives(tmp_path: Path) -> None:
    """With two passes that cannot differ, the loss is that of one call."""
    model = encoder(tmp_path, dropout=0.0)
    inner = MultipleNegativesRankingLoss(model, num_negatives=2)
    torch.manual_seed(1)
    expected = inner([LEFT, RIGHT], None)
    after = torch.rand(3)
    torch.manual_seed(1)
    with pytest.warns(match="R-Drop has no effect"):
        found = RDropLoss(inner, RDropConfig())([LEFT, RIGHT], None)
    torch.testing.assert_close(found["task_loss"], expected)
    assert found["weighted_divergence"].item() == pytest.approx(0.0, abs=1e-6)
    assert torch.equal(torch.rand(3), after)


def test_every_pair_that_a_loss_asks_about_is_tied(tmp_path: Path) -> None:
    model = encoder(tmp_path)
    loss = RDropLoss(ListNetLoss(model, mini_batch_size=2), RDropConfig(alpha=1.0, strategy="concat"))
    documents = [["w1", "w2"], ["w3"]]
    torch.manual_seed(1)
    found = loss([LEFT[:2], documents], [torch.tensor([1.0, 0.0]), torch.tensor([1.0])])
    torch.manual_seed(1)
    pairs = [(LEFT[0], "w1"), (LEFT[0], "w2"), (LEFT[1], "w3")]
    scores = torch.cat([scores_of(model, pairs[:2]), scores_of(model, pairs[2:])], dim=1).squeeze(-1)
    torch.testing.assert_close(found["weighted_divergence"], divergence(scores, kind="binary"))


@pytest.mark.shows("sentence-transformers", "evaluation", "log")
def test_a_training_logs_both_parts_and_evaluates_as_without(tmp_path: Path) -> None:
    model = encoder(tmp_path)
    data = Dataset.from_dict({"left": LEFT, "right": RIGHT, "label": [1.0, 0.0, 0.0, 1.0]})
    args = CrossEncoderTrainingArguments(
        str(tmp_path), max_steps=2, per_device_train_batch_size=2, logging_steps=1, report_to="none", use_cpu=True,
        save_strategy="no", disable_tqdm=True, learning_rate=1e-3,
    )  # fmt: skip
    inner = BinaryCrossEntropyLoss(model)
    loss = RDropLoss(inner, RDropConfig(alpha=2.0))
    trainer = CrossEncoderTrainer(model, args, train_dataset=data, eval_dataset=data, loss=loss)
    trainer.train()
    parts = zip(*(logged(trainer, name) for name in ("loss", "task_loss", "weighted_divergence")), strict=True)
    for total, task_loss, weighted in parts:
        assert weighted > 0
        assert total == pytest.approx(task_loss + weighted, rel=1e-3)
    model.eval()
    labels = torch.tensor(data["label"])
    assert loss([LEFT, RIGHT], labels) == inner([LEFT, RIGHT], labels)
    assert trainer.evaluate()["eval_loss"] == pytest.approx(inner([LEFT, RIGHT], labels).item(), rel=1e-4)


@pytest.mark.parametrize("options", [{"schedule": "warmup"}, {"every": 2}])
def test_what_depends_on_steps_is_refused(options: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="a loss knows no steps"):
        RDropLoss(BinaryCrossEntropyLoss(encoder(tmp_path)), RDropConfig(**options))


def test_a_loss_without_a_cross_encoder_is_refused() -> None:
    with pytest.raises(TypeError, match="loss is BCEWithLogitsLoss, which has no CrossEncoder"):
        RDropLoss(torch.nn.BCEWithLogitsLoss(), RDropConfig())
