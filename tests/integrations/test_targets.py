"""Tasks of transformers beyond classes: with one pass the plain Trainer, with two a loop by hand."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForMultipleChoice,
    BertForQuestionAnswering,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedModel,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    T5Config,
    T5ForConditionalGeneration,
    Trainer,
    TrainerCallback,
    ViTConfig,
    ViTForImageClassification,
    Wav2Vec2Config,
    Wav2Vec2ForCTC,
    Wav2Vec2ForSequenceClassification,
)

from hf_training import arguments, logged
from rdrop import divergence, rdrop_loss
from rdrop.integrations.transformers import RDropConfig, RDropSeq2SeqTrainer, RDropTrainer

B, T, C, WORDS = 8, 6, 3, 11
Rows = list[dict[str, Tensor]]


def rows_of(**columns: Tensor) -> Rows:
    return [{name: column[i] for name, column in columns.items()} for i in range(B)]


def words(*shape: int, highest: int = WORDS) -> Tensor:
    return torch.randint(1, highest, shape, generator=torch.Generator().manual_seed(3))


def bert(dropout: float, **options: Any) -> BertConfig:
    return BertConfig(
        vocab_size=WORDS, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8,
        hidden_dropout_prob=dropout, attention_probs_dropout_prob=dropout, **options,
    )  # fmt: skip


def wav2vec(dropout: float, **options: Any) -> Wav2Vec2Config:
    rates = ("hidden_dropout", "activation_dropout", "attention_dropout", "feat_proj_dropout", "final_dropout")
    options |= dict.fromkeys(rates, dropout) | {"layerdrop": 0.0, "apply_spec_augment": False, "pad_token_id": 0}
    options |= {"conv_dim": (4, 4), "conv_stride": (2, 2), "conv_kernel": (3, 3), "feat_extract_norm": "layer"}
    options |= {"num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2}
    return Wav2Vec2Config(
        vocab_size=WORDS, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, **options
    )


def span(dropout: float, highest: int = T) -> tuple[PreTrainedModel, Rows]:
    end = words(B, highest=highest)
    return BertForQuestionAnswering(bert(dropout)), rows_of(
        input_ids=words(B, T), start_positions=(end - 2).clamp(min=0), end_positions=end
    )


def choices(dropout: float) -> tuple[PreTrainedModel, Rows]:
    return BertForMultipleChoice(bert(dropout)), rows_of(input_ids=words(B, C, T), labels=words(B, highest=C))


def masked(dropout: float) -> tuple[PreTrainedModel, Rows]:
    labels = words(B, T).masked_fill(words(B, T) < 6, -100)
    return BertForMaskedLM(bert(dropout)), rows_of(input_ids=words(B, T), labels=labels)


def images(dropout: float) -> tuple[PreTrainedModel, Rows]:
    labels: dict[str, Any] = {"num_labels": C}
    config = ViTConfig(
        hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, image_size=4, patch_size=2,
        hidden_dropout_prob=dropout, attention_probs_dropout_prob=dropout, **labels,
    )  # fmt: skip
    return ViTForImageClassification(config), rows_of(pixel_values=torch.rand(B, 3, 4, 4), labels=words(B, highest=C))


def sounds(length: int = 60) -> dict[str, Tensor]:
    held = torch.arange(length) < torch.linspace(length // 2, length, B).long()[:, None]
    return {"input_values": torch.randn(B, length).masked_fill(~held, 0.0), "attention_mask": held.long()}


def audio(dropout: float) -> tuple[PreTrainedModel, Rows]:
    config = wav2vec(dropout, num_labels=C, classifier_proj_size=4)
    return Wav2Vec2ForSequenceClassification(config), rows_of(**sounds(), labels=words(B, highest=C))


def transcripts(dropout: float, reduction: str = "mean") -> tuple[PreTrainedModel, Rows]:
    labels = words(B, 4)
    labels[::2, 2:] = -100
    model = Wav2Vec2ForCTC(wav2vec(dropout, ctc_loss_reduction=reduction, ctc_zero_infinity=True))
    return model, rows_of(**sounds(), labels=labels)


def summed_transcripts(dropout: float) -> tuple[PreTrainedModel, Rows]:
    return transcripts(dropout, "sum")


TASKS = (span, choices, masked, images, audio, transcripts, summed_transcripts)
Build = Callable[[float], tuple[PreTrainedModel, Rows]]


@pytest.fixture(autouse=True)
def same_numbers() -> Iterator[None]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def steps(kind: type[Trainer], model: nn.Module, rows: Any, folder: Path, **options: Any) -> Trainer:
    more = {name: options.pop(name) for name in ("rdrop", "compute_loss_func") if name in options}
    usual = {"max_steps": 2, "per_device_train_batch_size": 2, "optim": "sgd", "learning_rate": 0.1}
    trainer = kind(model, arguments(folder, **(usual | options)), train_dataset=rows, **more)
    trainer.train()
    return trainer


def same_weights(one: nn.Module, other: nn.Module) -> None:
    for name, weight in one.state_dict().items():
        torch.testing.assert_close(other.state_dict()[name], weight, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("task", TASKS)
def test_one_pass_is_the_plain_trainer(task: Build, accumulation: int, tmp_path: Path) -> None:
    model, rows = task(0.0)
    start, plain = copy.deepcopy(model), copy.deepcopy(model)
    config = RDropConfig(passes=1)
    ours = steps(RDropTrainer, model, rows, tmp_path, rdrop=config, gradient_accumulation_steps=accumulation)
    # As one batch: the plain Trainer adds up the means of micro-batches where a model takes and ignores its count.
    other = steps(Trainer, plain, rows, tmp_path, per_device_train_batch_size=2 * accumulation)
    same_weights(plain, model)
    assert logged(ours, "loss") == pytest.approx(logged(other, "loss"), rel=1e-4)
    assert logged(ours, "loss") == pytest.approx(logged(ours, "task_loss"), rel=1e-4)
    assert any(not torch.equal(weight, start.state_dict()[name]) for name, weight in model.state_dict().items())
    held: Any = rows
    evaluated = [trainer.evaluate(held)["eval_loss"] for trainer in (ours, other)]
    assert evaluated[0] == pytest.approx(evaluated[1], rel=1e-4)


def of_spans(outputs: Any, row: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Task loss and divergence by hand, for a batch that is one row, repeated as passes."""
    terms = []
    for name in ("start", "end"):
        logits, place = outputs[f"{name}_logits"], int(row[f"{name}_positions"])
        terms.append((F.cross_entropy(logits, torch.full((len(logits),), place)), divergence(logits[:, None])))
    return torch.stack([task for task, _ in terms]).mean(), torch.stack([tied for _, tied in terms]).mean()


def of_frames(outputs: Any, row: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    frames = int(row["attention_mask"].sum())
    for _ in range(2):
        frames = (frames - 3) // 2 + 1
    logits, held = outputs["logits"][:, :frames], row["labels"][row["labels"] > 0]
    tasks = [
        F.ctc_loss(one.log_softmax(-1), held, torch.tensor([frames]), torch.tensor([len(held)]), zero_infinity=True)
        for one in logits
    ]
    return torch.stack(tasks).mean(), divergence(logits[:, None])


@pytest.mark.parametrize(("task", "by_hand"), [(span, of_spans), (transcripts, of_frames)], ids=["span", "ctc"])
@pytest.mark.shows("transformers", "steps")
def test_two_passes_are_a_loop_by_hand(
    task: Build, by_hand: Callable[..., tuple[Tensor, Tensor]], tmp_path: Path
) -> None:
    model, rows = task(0.3)
    twin = copy.deepcopy(model).train()
    names = [name for name in rows[0] if name in ("labels", "start_positions", "end_positions")]
    args = arguments(tmp_path, optim="sgd", learning_rate=0.1, max_steps=1, per_device_train_batch_size=1)
    data: Any = rows[:1]
    trainer = RDropTrainer(model, args, rdrop=RDropConfig(alpha=2.0, strategy="concat"), train_dataset=data)
    inputs = {name: torch.stack([rows[0][name]] * 2) for name in rows[0] if name not in names}
    torch.manual_seed(args.seed)
    trainer.add_callback(_Seeded())
    trainer.train()
    torch.manual_seed(7)
    task_loss, tied = by_hand(twin(**inputs), rows[0])
    torch.autograd.backward(task_loss + 2.0 * tied)
    for weight in twin.parameters():
        if weight.grad is not None:
            weight.data -= 0.1 * weight.grad
    assert tied > 0
    assert logged(trainer, "divergence") == pytest.approx([tied.item()], rel=1e-4)
    assert logged(trainer, "task_loss") == pytest.approx([task_loss.item()], rel=1e-4)
    assert logged(trainer, "loss") == pytest.approx([(task_loss + 2.0 * tied).item()], rel=1e-4)
    same_weights(twin, model)


class _Seeded(TrainerCallback):
    def on_step_begin(self, *_: Any, **__: Any) -> None:
        torch.manual_seed(7)


def test_padding_and_frames_of_padding_count_nowhere(tmp_path: Path) -> None:
    model, rows = transcripts(0.3)
    trainer = RDropTrainer(model.train(), arguments(tmp_path), rdrop=RDropConfig(strategy="sequential"))
    batch = {name: torch.stack([row[name] for row in rows]) for name in rows[0]}
    loud = {**batch, "input_values": batch["input_values"].masked_fill(batch["attention_mask"] == 0, 0.5)}
    found = []
    for each in (batch, loud):
        torch.manual_seed(1)
        found.append(trainer.compute_loss(model, each))
    torch.testing.assert_close(found[0], found[1])


def test_a_ctc_model_that_does_not_tell_its_frames_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, rows = transcripts(0.3)
    monkeypatch.delattr("transformers.Wav2Vec2PreTrainedModel._get_feat_extract_output_lengths")
    trainer = RDropTrainer(model.train(), arguments(tmp_path), rdrop=RDropConfig())
    batch = {name: torch.stack([row[name] for row in rows]) for name in rows[0]}
    with pytest.raises(ValueError, match=r"how many frames Wav2Vec2ForCTC makes of a recording.*compute_loss_func"):
        trainer.compute_loss(model, batch)


def test_positions_beyond_the_text_do_not_count(tmp_path: Path) -> None:
    model, rows = span(0.0, highest=2 * T)
    batch = {name: torch.stack([row[name] for row in rows]) for name in rows[0]}
    assert batch["end_positions"].max() >= T
    trainer = RDropTrainer(model.train(), arguments(tmp_path), rdrop=RDropConfig(passes=1))
    torch.testing.assert_close(trainer.compute_loss(model, batch), model(**batch).loss)


def focal(outputs: Any, labels: Tensor, num_items_in_batch: Tensor | None = None) -> Tensor:
    """A loss that the library does not have."""
    losses = F.cross_entropy(outputs["logits"].flatten(0, -2), labels.flatten(), reduction="none")
    losses = (1 - torch.exp(-losses)) ** 2 * losses
    count = (labels != -100).sum() if num_items_in_batch is None else num_items_in_batch
    return losses.sum() / count


@pytest.mark.parametrize("accumulation", [1, 2])
def test_a_loss_of_the_users_own_with_one_pass_is_the_plain_trainer(accumulation: int, tmp_path: Path) -> None:
    model, rows = masked(0.0)
    plain = copy.deepcopy(model)
    options: dict[str, Any] = {"gradient_accumulation_steps": accumulation, "compute_loss_func": focal}
    other = steps(Trainer, plain, rows, tmp_path, **options)
    ours = steps(RDropTrainer, model, rows, tmp_path, rdrop=RDropConfig(passes=1), **options)
    same_weights(plain, model)
    assert logged(ours, "task_loss") == pytest.approx(logged(other, "loss"), rel=1e-4)
    assert ours.evaluate(rows)["eval_loss"] == pytest.approx(other.evaluate(rows)["eval_loss"], rel=1e-4)  # type: ignore[arg-type]


@pytest.mark.shows("transformers", "own loss", "masks")
def test_a_loss_of_the_users_own_is_tied_at_the_labels_that_count(tmp_path: Path) -> None:
    config = GPT2Config(vocab_size=WORDS, n_embd=8, n_layer=1, n_head=2, resid_pdrop=0.3, embd_pdrop=0.3)
    model = GPT2LMHeadModel(config).train()
    ids = words(B, T)
    labels = ids.masked_fill(torch.arange(T) > 3, -100)

    def mean_of_next(outputs: Any, labels: Tensor, num_items_in_batch: Tensor) -> Tensor:
        logits, following = outputs["logits"][:, :-1], labels[:, 1:]
        return F.cross_entropy(logits.flatten(0, 1), following.flatten(), reduction="sum") / num_items_in_batch

    options: dict[str, Any] = {"rdrop": RDropConfig(alpha=3.0), "compute_loss_func": mean_of_next}
    trainer = RDropTrainer(model, arguments(tmp_path), **options)
    batch = {"input_ids": ids, "labels": labels}
    count = (labels[:, 1:] != -100).sum()
    torch.manual_seed(5)
    found = trainer.compute_loss(model, batch, num_items_in_batch=count)
    torch.manual_seed(5)
    logits = model(torch.cat([ids, ids])).logits.view(2, B, T, WORDS)
    expected = rdrop_loss(logits[:, :, :-1], labels[:, 1:], alpha=3.0)
    torch.testing.assert_close(found, expected.loss)


@pytest.mark.shows("transformers", "evaluation")
def test_sequences_are_generated_once_and_as_without(tmp_path: Path) -> None:
    config = T5Config(vocab_size=WORDS, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2, dropout_rate=0.3)
    config.decoder_start_token_id = config.pad_token_id = 0
    model = T5ForConditionalGeneration(config)
    rows: Any = rows_of(input_ids=words(B, T), labels=words(B, 4))
    args = Seq2SeqTrainingArguments(
        str(tmp_path), predict_with_generate=True, generation_max_length=5, report_to="none", use_cpu=True,
        disable_tqdm=True, max_steps=1, per_device_eval_batch_size=4, save_strategy="no",
    )  # fmt: skip
    trainer = RDropSeq2SeqTrainer(model, args, rdrop=RDropConfig(), train_dataset=rows)
    trainer.train()
    assert trainer.state.global_step == 1
    found: Any = trainer.predict(rows).predictions
    expected: Any = Seq2SeqTrainer(model, args).predict(rows).predictions
    assert len(found) == B
    assert (found == expected).all()
