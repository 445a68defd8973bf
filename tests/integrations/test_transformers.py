from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertForTokenClassification,
    GPT2Config,
    GPT2LMHeadModel,
    MixtralConfig,
    MixtralForCausalLM,
    PreTrainedModel,
    T5Config,
    T5ForConditionalGeneration,
    Trainer,
    TrainingArguments,
)

from hf_training import arguments, logged
from rdrop import NoEffectWarning, forward_passes, rdrop_loss, schedule
from rdrop.integrations import transformers as module
from rdrop.integrations.transformers import RDropConfig, RDropTrainer
from tagging import WORDS, B, C, T, Tagger, sentences


def trained(
    folder: Path,
    model: nn.Module,
    rdrop: RDropConfig | None,
    rows: Any = None,
    kind: type[RDropTrainer] = RDropTrainer,
    **options: Any,
) -> Trainer:
    data: dict[str, Any] = {"train_dataset": sentences() if rows is None else rows}
    if rdrop is None:
        trainer = Trainer(model, arguments(folder, **options), **data)
    else:
        trainer = kind(model, arguments(folder, **options), rdrop=rdrop, **data)
    trainer.train()
    return trainer


@pytest.mark.parametrize("passes", [1, 2])
@pytest.mark.shows("transformers", "accumulation")
def test_trap_12_four_micro_batches_have_the_gradient_of_the_one_batch(tmp_path: Path, passes: int) -> None:
    config = RDropConfig(alpha=2.0, passes=passes, strategy="sequential")
    whole, split = Tagger(by_row=passes), Tagger(by_row=passes)
    one = trained(tmp_path, whole, config, per_device_train_batch_size=B)
    four = trained(tmp_path, split, config, per_device_train_batch_size=B // 4, gradient_accumulation_steps=4)
    assert split.seen == 4 * passes * 3 * [(B // 4, True)]
    for name, weight in whole.state_dict().items():
        torch.testing.assert_close(split.state_dict()[name], weight, rtol=1e-5, atol=1e-6)
    for part in ("loss", "task_loss", "divergence", "alpha"):
        assert logged(four, part) == pytest.approx(logged(one, part), rel=1e-5)
    if passes == 2:
        assert min(logged(one, "divergence")) > 0.01


@pytest.mark.parametrize(("every", "cost"), [(1, "2.00"), (4, "1.25")])
def test_the_expected_cost_is_told_once_before_the_first_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, every: int, cost: str
) -> None:
    told: list[str] = []
    monkeypatch.setattr(module.logger, "info", told.append)
    monkeypatch.setattr(RDropTrainer, "training_step", recorded(RDropTrainer.training_step, told))
    trained(tmp_path, Tagger(), RDropConfig(every=every))
    assert told[0].startswith(f"  R-Drop: concat, {cost} times the operations of plain training. shared takes 2.")
    assert told[1:] == 3 * ["a step"]


def recorded(step: Callable[..., Tensor], told: list[str]) -> Callable[..., Tensor]:
    """A training step that is written down when it is over."""

    def replacement(*args: Any) -> Tensor:
        loss = step(*args)
        told.append("a step")
        return loss

    return replacement


@pytest.mark.parametrize("every", [1, 2, 5])
@pytest.mark.shows("transformers", "steps")
def test_steps_are_those_of_a_plain_loop(tmp_path: Path, every: int) -> None:
    order: list[list[int]] = []

    def collate(rows: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        order.append([int(row["row"]) for row in rows])
        return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}

    model, twin = Tagger(by_row=2), Tagger(by_row=2)
    config = RDropConfig(alpha=2.0, strategy="sequential", every=every)
    RDropTrainer(model, arguments(tmp_path), rdrop=config, train_dataset=sentences(), data_collator=collate).train()

    rows = sentences()
    optimizer = torch.optim.AdamW(twin.parameters(), lr=1e-2, weight_decay=0.0)
    for step, batch in enumerate(order[:3]):
        words, labels = (torch.stack([rows[row][name] for row in batch]) for name in ("words", "labels"))
        logits = torch.stack([twin(words, torch.tensor(batch))["logits"] for _ in range(1 if step % every else 2)])
        rdrop_loss(logits, labels, alpha=2.0).loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()
    for name, weight in twin.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], weight, rtol=1e-5, atol=1e-6)


class Seeded(RDropTrainer):
    """Draws the same in every step with the same number."""

    def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
        torch.manual_seed(100 + self.state.global_step)
        return super().compute_loss(*args, **kwargs)


class Dropping(nn.Module):
    """Two blocks with dropout in each."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(WORDS, 8)
        self.blocks = nn.Sequential(*[nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Dropout(0.3)) for _ in range(2)])
        self.head = nn.Linear(8, C)

    def forward(self, words: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        logits = self.head(self.blocks(self.embed(words)))
        return {"logits": logits} if labels is None else {"loss": torch.zeros(()), "logits": logits}


@pytest.mark.parametrize(
    ("config", "options", "factor"),
    [
        (RDropConfig(alpha=2.0, fraction=0.3), {"fraction": 0.3}, 8 / 2),  # of eight rows, two
        (RDropConfig(alpha=2.0, one_sided=True), {"one_sided": True}, 1),
        (RDropConfig(alpha=2.0, branch_at="-1"), {"branch_at": "blocks.1.0"}, 1),
        (RDropConfig(alpha=2.0, branch_at="head"), {"branch_at": "head"}, 1),
        (RDropConfig(alpha=2.0, fraction=0.5, one_sided=True), {"fraction": 0.5, "one_sided": True}, 2),
    ],
)
@pytest.mark.filterwarnings("ignore::rdrop.errors.NoEffectWarning")  # the head draws nothing
@pytest.mark.shows("transformers", "cheaper")
def test_steps_with_cheaper_passes_are_those_of_a_plain_loop(
    config: RDropConfig, options: dict[str, Any], factor: float, tmp_path: Path
) -> None:
    order: list[list[int]] = []
    rows = sentences()

    def collate(batch: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        order.append([int(row["row"]) for row in batch])
        return {name: torch.stack([row[name] for row in batch]) for name in ("words", "labels")}

    model, twin = Dropping(), Dropping()
    trainer = Seeded(
        model, arguments(tmp_path, remove_unused_columns=False), rdrop=config, train_dataset=rows, data_collator=collate
    )
    trainer.train()
    optimizer = torch.optim.AdamW(twin.parameters(), lr=1e-2, weight_decay=0.0)
    divergences = []
    for step, batch in enumerate(order[:3]):
        words, labels = (torch.stack([rows[row][name] for row in batch]) for name in ("words", "labels"))
        torch.manual_seed(100 + step)
        logits = forward_passes(twin, words, **options)["logits"]
        terms = rdrop_loss(logits, labels, alpha=2.0 * factor)
        torch.autograd.backward(terms.loss)
        divergences.append(float(terms.divergence.detach()) * factor)
        optimizer.step()
        optimizer.zero_grad()
    for name, weight in twin.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], weight, rtol=1e-5, atol=1e-6)
    assert logged(trainer, "divergence") == pytest.approx(divergences, rel=1e-4)
    assert logged(trainer, "alpha") == [2.0] * 3


def test_agreement_of_a_fraction_stands_for_all_rows(tmp_path: Path) -> None:
    """Rows that made one pass agree with themselves and say nothing."""
    found = []
    for fraction in (1.0, 0.5):
        torch.manual_seed(1)
        config = RDropConfig(alpha=0.0, fraction=fraction)
        trainer = trained(tmp_path, Dropping(), config, max_steps=60, learning_rate=0.0)
        found.append(float(np.mean(logged(trainer, "agreement"))))
    assert found[0] < 0.9
    assert found[1] == pytest.approx(found[0], abs=0.05)


def test_of_every_third_step_the_log_tells_what_those_steps_say(tmp_path: Path) -> None:
    """Divergence, alpha and agreement are those of steps with two passes; intervals without such a step have none."""
    config = RDropConfig(alpha=2.0, strategy="sequential", every=3)
    trainer = trained(tmp_path, Tagger(by_row=2), config, max_steps=6)
    assert logged(trainer, "alpha") == [2.0, 2.0]
    assert len(logged(trainer, "loss")) == 6
    assert min(logged(trainer, "divergence")) > 0.01
    assert [entry["step"] for entry in trainer.state.log_history if "divergence" in entry] == [1, 4]
    assert [entry["step"] for entry in trainer.state.log_history if "agreement" in entry] == [1, 4]
    trainer = trained(tmp_path, Tagger(by_row=2), config, max_steps=6, logging_steps=2)
    assert [entry["step"] for entry in trainer.state.log_history if "agreement" in entry] == [2, 4]
    with pytest.raises(ValueError, match="every is 0; expected at least 1"):
        RDropConfig(every=0)
    with pytest.raises(ValueError, match=r"fraction is 0\.0; expected a share of the rows"):
        RDropConfig(fraction=0.0)


@pytest.mark.shows("transformers", "plain")
def test_one_pass_is_plain_training(tmp_path: Path) -> None:
    plain, single, double = Tagger(), Tagger(), Tagger()
    trained(tmp_path, plain, None)
    trained(tmp_path, single, RDropConfig(passes=1))
    trained(tmp_path, double, RDropConfig(passes=2))
    for name, weight in plain.state_dict().items():
        torch.testing.assert_close(single.state_dict()[name], weight, rtol=1e-5, atol=1e-6)
    assert not torch.allclose(double.head.weight, plain.head.weight, atol=1e-4)


@pytest.mark.shows("transformers", "evaluation")
def test_trap_17_evaluation_makes_one_pass_and_has_the_plain_loss(tmp_path: Path) -> None:
    model = Tagger()
    trainer = trained(tmp_path, model, RDropConfig(alpha=5.0))
    model.seen.clear()
    rows: Any = sentences()
    loss = trainer.evaluate(rows)["eval_loss"]
    assert model.seen == 4 * [(8, False)]
    prediction = trainer.predict(rows)
    assert np.shape(prediction.predictions) == (B, T, C)
    model.eval()
    batches = [
        {name: torch.stack([row[name] for row in rows[first : first + 8]]) for name in rows[0]}
        for first in range(0, B, 8)
    ]
    expected = torch.stack([model(**batch)["loss"] for batch in batches]).mean()
    assert loss == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.shows("transformers", "log")
def test_the_parts_are_logged_as_means_over_the_interval(tmp_path: Path) -> None:
    class Rising(RDropTrainer):
        def alpha_at(self, step: int) -> float:
            return schedule.linear_warmup(1.0, steps=4)(step)

    config = RDropConfig(strategy="sequential")
    options: dict[str, Any] = {"max_steps": 6, "gradient_accumulation_steps": 2, "per_device_train_batch_size": 4}
    options["kind"] = Rising
    every = trained(tmp_path, Tagger(by_row=2), config, **options)
    third = trained(tmp_path, Tagger(by_row=2), config, logging_steps=3, **options)
    assert logged(every, "alpha") == pytest.approx([0, 0.25, 0.5, 0.75, 1, 1])
    for loss, task_loss, divergence, alpha in zip(
        *(logged(every, part) for part in ("loss", "task_loss", "divergence", "alpha")), strict=True
    ):
        assert divergence > 0
        assert loss == pytest.approx(task_loss + alpha * divergence, rel=1e-5)
    for part in ("task_loss", "divergence", "alpha"):
        values = logged(every, part)
        means = [sum(values[:3]) / 3, sum(values[3:]) / 3]
        assert logged(third, part) == pytest.approx(means, rel=1e-5)


@pytest.mark.shows("transformers", "schedule")
def test_alpha_follows_the_learning_rate(tmp_path: Path) -> None:
    config = RDropConfig(alpha=3.0, schedule="learning_rate")
    trainer = trained(tmp_path, Tagger(), config, max_steps=5, warmup_steps=2, lr_scheduler_type="linear")
    rates = logged(trainer, "learning_rate")
    assert max(rates) == pytest.approx(1e-2)
    assert logged(trainer, "alpha") == pytest.approx([3.0 * rate / 1e-2 for rate in rates])


@pytest.mark.shows("transformers", "label smoothing")
def test_label_smoothing_is_that_of_the_objective(tmp_path: Path) -> None:
    model = Tagger()
    model.dropout.p = 0.0
    batch = {name: torch.stack([row[name] for row in sentences()]) for name in sentences()[0]}
    logits = model(batch["words"], batch["row"])["logits"].flatten(0, 1)
    expected = cross_entropy(logits, batch["labels"].flatten(), label_smoothing=0.3)
    options: dict[str, Any] = {"max_steps": 1, "per_device_train_batch_size": B, "label_smoothing_factor": 0.3}
    trainer = trained(tmp_path, model, RDropConfig(passes=1), **options)
    assert logged(trainer, "task_loss") == pytest.approx([expected.item()], rel=1e-5)


def test_class_probabilities_are_counted_by_row(tmp_path: Path) -> None:
    class Soft(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.head = nn.Linear(4, C)

        def forward(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
            logits: Tensor = self.head(x)
            return logits

    generator = torch.Generator().manual_seed(3)
    rows = [
        {"x": torch.randn(4, generator=generator), "labels": torch.rand(C, generator=generator).softmax(0)}
        for _ in range(8)
    ]
    model = Soft()
    expected = cross_entropy(
        model(torch.stack([row["x"] for row in rows])), torch.stack([row["labels"] for row in rows])
    )
    options: dict[str, Any] = {"max_steps": 1, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 4}
    trainer = trained(tmp_path, model, RDropConfig(passes=1), rows, **options)
    assert logged(trainer, "loss") == pytest.approx([expected.item()], rel=1e-5)


def bert() -> BertConfig:
    config = BertConfig(
        vocab_size=WORDS,
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=8,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    config.num_labels = C
    return config


def gpt2() -> GPT2LMHeadModel:
    return GPT2LMHeadModel(
        GPT2Config(vocab_size=WORDS, n_embd=8, n_layer=1, n_head=2, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0)
    )


def mixtral() -> MixtralForCausalLM:
    config = MixtralConfig(
        vocab_size=WORDS, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, num_local_experts=3, num_experts_per_tok=1, output_router_logits=True,
        router_aux_loss_coef=0.5,
    )  # fmt: skip
    return MixtralForCausalLM(config)


def t5() -> T5ForConditionalGeneration:
    config = T5Config(vocab_size=WORDS, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2, dropout_rate=0.0)
    config.decoder_start_token_id = config.pad_token_id = 0
    return T5ForConditionalGeneration(config)


@pytest.mark.parametrize(
    ("build", "labels_shape"),
    [
        (lambda: BertForSequenceClassification(bert()), ()),
        (lambda: BertForTokenClassification(bert()), (T,)),
        (gpt2, (T,)),
        (t5, (4,)),
        (mixtral, (T,)),
    ],
    ids=["sequence-classification", "token-classification", "causal-lm", "seq2seq", "experts"],
)
def test_the_task_loss_is_that_of_the_model(
    tmp_path: Path, build: Callable[[], PreTrainedModel], labels_shape: tuple[int, ...]
) -> None:
    torch.manual_seed(0)
    model = build().train()
    words = torch.randint(1, WORDS, (B, T))
    labels = torch.randint(1, C, (B, *labels_shape))
    if labels_shape:
        labels[::2, -2:] = -100
    batch = {"input_ids": words, "labels": labels}
    kept = {name: tensor.clone() for name, tensor in batch.items()}
    trainer = RDropTrainer(model, arguments(tmp_path), rdrop=RDropConfig(passes=1))
    own = model(**batch).loss
    torch.testing.assert_close(trainer.compute_loss(model, batch), own)
    assert batch.keys() == kept.keys()
    assert all(torch.equal(batch[name], kept[name]) for name in kept)

    rows: Any = [{"input_ids": words[row], "labels": labels[row]} for row in range(B)]
    untouched = Trainer(model, arguments(tmp_path)).evaluate(rows)["eval_loss"]
    assert trainer.evaluate(rows)["eval_loss"] == pytest.approx(untouched)
    options: dict[str, Any] = {"max_steps": 1, "gradient_accumulation_steps": 4}
    accumulated = trained(tmp_path, model, RDropConfig(passes=1), rows, **options)
    # The balance of experts in four micro-batches is not that of the whole.
    assert logged(accumulated, "loss") == pytest.approx([own.item()], rel=1e-3 if build is mixtral else 1e-5)


def test_labels_that_are_shifted_already_are_taken_as_they_are(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = gpt2().train()
    words, shifted = torch.randint(WORDS, (2, B, T))
    trainer = RDropTrainer(model, arguments(tmp_path), rdrop=RDropConfig(passes=1))
    loss = trainer.compute_loss(model, {"input_ids": words, "labels": words, "shift_labels": shifted})
    logits = model(input_ids=words).logits
    torch.testing.assert_close(loss, cross_entropy(logits.flatten(0, 1), shifted.flatten()))


def test_another_trainer_can_be_inherited_beside_it(tmp_path: Path) -> None:
    calls = []

    class Other(Trainer):
        def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
            calls.append(dict(logs))
            super().log(logs, start_time)

    class Both(RDropTrainer, Other):
        pass

    Both(Tagger(), arguments(tmp_path), rdrop=RDropConfig(), train_dataset=sentences()).train()
    assert calls[0].keys() >= {"loss", "task_loss", "divergence", "alpha"}


def test_the_passes_of_a_step_can_be_made_in_another_way(tmp_path: Path) -> None:
    class Fixed(RDropTrainer):
        def answers(self, model: nn.Module, batch: dict[str, Any]) -> Any:
            assert model.training
            assert "labels" not in batch
            logits = model(**batch)["logits"]
            return torch.stack((logits, 2 * logits))

    model = Tagger()
    model.dropout.p = 0.0
    rows: Any = sentences()
    batch = {name: torch.stack([row[name] for row in rows]) for name in rows[0]}
    logits = model(batch["words"], batch["row"])["logits"]
    expected = rdrop_loss(torch.stack((logits, 2 * logits)), batch["labels"], alpha=2.0)
    model.seen.clear()
    options = arguments(tmp_path, max_steps=1, per_device_train_batch_size=B)
    trainer = Fixed(model, options, rdrop=RDropConfig(alpha=2.0), train_dataset=rows)
    trainer.train()
    assert logged(trainer, "loss") == pytest.approx([expected.loss.item()], rel=1e-5)
    assert logged(trainer, "divergence") == pytest.approx([expected.divergence.item()], rel=1e-5)
    assert model.seen == [(B, True)]
    trainer.evaluate(rows)
    assert model.seen == [(B, True)] + 4 * [(8, False)]


@pytest.mark.shows("transformers", "no effect")
def test_a_model_without_dropout_is_spoken_of(tmp_path: Path) -> None:
    model = Tagger()
    model.dropout.p = 0.0
    rows: Any = sentences()
    trainer = RDropTrainer(model, arguments(tmp_path, max_steps=2), rdrop=RDropConfig(), train_dataset=rows)
    with pytest.warns(NoEffectWarning, match="Tagger") as told:
        trainer.train()
    assert len(told) == 1


def test_a_batch_without_labels_is_refused(tmp_path: Path) -> None:
    model = Tagger().train()
    trainer = RDropTrainer(model, arguments(tmp_path), rdrop=RDropConfig())
    batch = {"words": torch.zeros(2, T, dtype=torch.long), "row": torch.arange(2)}
    with pytest.raises(ValueError, match="without labels, only words, row"):
        trainer.compute_loss(model, batch)


@pytest.mark.parametrize(
    ("outputs", "message"),
    [(lambda x: {"scores": x}, "got scores"), (lambda x: {"logits": [x]}, "got list")],
)
def test_an_output_without_logits_is_refused(tmp_path: Path, outputs: Callable[[Tensor], object], message: str) -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(1))

        def forward(self, x: Tensor, labels: Tensor | None = None) -> object:
            return outputs(x)

    model = Odd().train()
    trainer = RDropTrainer(model, arguments(tmp_path), rdrop=RDropConfig(passes=1))
    with pytest.raises((ValueError, TypeError), match=message):
        trainer.compute_loss(model, {"x": torch.ones(2, 3), "labels": torch.zeros(2, dtype=torch.long)})


def test_several_gpus_in_one_process_are_refused(tmp_path: Path) -> None:
    options = arguments(tmp_path)
    options._n_gpu = 2
    with pytest.raises(ValueError, match="2 GPUs in one process"):
        RDropTrainer(Tagger(), options, rdrop=RDropConfig())


@pytest.mark.parametrize("accumulation", [1, 2])
def test_the_agreement_of_the_passes_is_that_of_the_last_step_that_is_logged(accumulation: int, tmp_path: Path) -> None:
    class Fixed(nn.Module):
        """Answers of which one in four differs between the passes, and one that differs is ignored."""

        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(()))
            self.dropout = nn.Dropout(0.5)

        def forward(self, x: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
            first = torch.arange(x.size(0)) < x.size(0) // 2  # concatenated: the first half is the first pass
            choice = torch.where(first, x[:, 0], x[:, 1]).long()
            return {"logits": self.scale * 3 * nn.functional.one_hot(choice, 3).float() + 0 * self.dropout(x).sum()}

    pairs = torch.tensor([[0.0, 0.0], [1.0, 1.0], [2.0, 2.0], [0.0, 1.0], [1.0, 2.0]])
    rows = [{"x": pair, "labels": label} for pair, label in zip(pairs, [0, 1, 2, 0, -100], strict=True)]
    args = TrainingArguments(
        str(tmp_path),
        max_steps=2,
        logging_steps=2,
        per_device_train_batch_size=5,
        gradient_accumulation_steps=accumulation,
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
    )
    config = RDropConfig(alpha=1.0, strategy="concat")
    trainer = RDropTrainer(Fixed(), args, train_dataset=rows * accumulation, rdrop=config)
    trainer.train()
    assert [entry["agreement"] for entry in trainer.state.log_history if "agreement" in entry] == [0.75]
