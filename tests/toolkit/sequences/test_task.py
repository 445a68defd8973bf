from __future__ import annotations

import copy
import math
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.functional import log_softmax
from transformers import T5Config, T5ForConditionalGeneration

import tiny_translation as tiny
from rdrop.errors import RDropWarning, UserError
from rdrop.stochastic import stochastic_layers
from rdrop.toolkit.arms import objective
from rdrop.toolkit.pretrained import save_with_tokenizer
from rdrop.toolkit.sequences.generated_text import outputs, search
from rdrop.toolkit.sequences.length_batches import BatchedRows
from rdrop.toolkit.tasks.translation import TranslationTask
from rdrop.toolkit.text.vocabulary import train_vocabulary
from rdrop.toolkit.train import build_model, make_trainer, survey


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tiny.write_splits(tmp_path)
    return tmp_path


def loaded(folder: Path, **sections: dict[str, Any]) -> tuple[TranslationTask, Any, nn.Module]:
    task = tiny.task(folder, **sections)
    splits = task.load(0)
    return task, splits, build_model(task, 0)


def trainer_of(task: TranslationTask, splits: Any, model: nn.Module, arm: Any = "rdrop", steps: int = 1) -> Any:
    where = str(Path(task.recipe.data.folder) / "trainer")
    goal = objective(arm, task.recipe)
    return make_trainer(task, goal, 0, model, splits, steps=steps, nominal=steps, folder=where)


def with_opinions(model: nn.Module) -> nn.Module:
    """The fresh network with larger weights, so that it says something else about each source."""
    with torch.no_grad():
        for weights in model.parameters():
            if weights.ndim > 1 and weights.requires_grad:
                weights.mul_(15)
    return model


def texts(task: TranslationTask, rows: Any, column: str) -> list[str]:
    tokenizer: Any = task.tokenizer
    return [tokenizer.decode(ids, skip_special_tokens=True) for ids in rows[column]]


# Data


def test_the_splits_are_the_tables_in_tokens_of_one_vocabulary(folder: Path) -> None:
    task, splits, _ = loaded(folder)
    assert isinstance(splits.train, BatchedRows)
    for rows, expected in ((splits.train.rows, tiny.pairs(48, 0)), (splits.validation, tiny.pairs(9, 1))):
        assert list(zip(texts(task, rows, "input_ids"), texts(task, rows, "labels"), strict=True)) == expected
        assert {ids[-1] for ids in [*rows["input_ids"], *rows["labels"]]} == {task.tokenizer.eos_token_id}
    assert splits.test["references"][:] == [[target] for _, target in tiny.pairs(9, 2)]
    assert splits.test["source"][:] == [source for source, _ in tiny.pairs(9, 2)]
    assert splits.description == (
        "48 pairs of train.tsv for training, 9 for validation (dev.tsv), 9 for testing (test.tsv); "
        f"{len(task.tokenizer)} tokens, learned from the training split."
    )
    assert len(task.tokenizer) <= 300


def test_what_is_held_out_and_drawn_is_decided_by_the_seed_unless_the_recipe_has_one(folder: Path) -> None:
    def parts(seed: int, split_seed: int | None, validation: str | None = None) -> tuple[list[str], list[str]]:
        data = {"validation": validation, "validation_fraction": 0.25, "train_size": 20, "split_seed": split_seed}
        task = tiny.task(folder, data=data, training={"batching": "random"})
        splits: Any = task.load(seed)
        return texts(task, splits.train, "input_ids"), splits.validation["source"][:]

    training, held_out = parts(0, None)
    assert (len(training), len(held_out)) == (20, 12)
    everything = [source for source, _ in tiny.pairs(48, 0)]
    assert all(training.count(text) + held_out.count(text) <= everything.count(text) for text in everything)
    assert parts(0, None) == (training, held_out) != parts(1, None)
    assert parts(0, 7) == parts(1, 7) == parts(7, None)
    assert parts(0, None, "dev.tsv")[0] != parts(1, None, "dev.tsv")[0]
    assert parts(0, None, "dev.tsv")[1] == [source for source, _ in tiny.pairs(9, 1)]


def test_texts_that_are_cut_are_counted_for_each_split(folder: Path) -> None:
    _, splits, _ = loaded(folder, data={"max_source_length": 6, "max_target_length": 9})
    _, whole, _ = loaded(folder)
    told = []
    for name, rows, original in (
        ("training", splits.train.rows, whole.train.rows),
        ("validation", splits.validation, whole.validation),
        ("test", splits.test, whole.test),
    ):
        for column, side, most in (("input_ids", "source", 6), ("labels", "target", 9)):
            assert max(map(len, rows[column])) == most
            long = sum(len(ids) > most for ids in original[column])
            told.append(
                f"{long} of {len(rows)} {side}s of the {name} split have more than {most} tokens "
                f"(data.max_{side}_length) and were cut."
            )
    assert list(splits.notes[:-1]) == told  # the last one has the signatures


def test_a_streamed_training_split_trains_and_tells_what_it_does_not_count(folder: Path) -> None:
    sections: dict[str, Any] = {
        "data": {"streaming": True, "shuffle_buffer": 10},
        "training": {"batching": "random", "steps": 14, "eval_every_steps": 14},
    }
    task, splits, model = loaded(folder, **sections)
    assert "Streamed pairs of train.tsv for training, 9 for validation" in splits.description
    assert "order random within 10 pairs" in splits.notes[0]
    assert task.batches_per_epoch(splits.train) is None
    found = texts(task, {"labels": [row["labels"] for row in islice(splits.train, 48)]}, "labels")
    assert sorted(found) == sorted(target for _, target in tiny.pairs(48, 0)) != found
    trainer = trainer_of(task, splits, model, steps=14)
    trainer.train()
    assert trainer.state.global_step == 14
    assert survey(task.recipe).nominal_steps == 14


def test_a_streamed_split_is_checked_before_it_is_trained_on(folder: Path) -> None:
    tiny.write_tsv(folder / "train.tsv", [*tiny.pairs(40, 0), ("eins", " ")])
    sections: dict[str, Any] = {"data": {"streaming": True}, "training": {"batching": "random"}}
    for name in (None, pretrained(folder)):
        with pytest.raises(UserError, match=r"train\.tsv:42: en: got an empty text"):
            tiny.task(folder, model={"name": name}, **sections).load(0)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"train": "tran.tsv"}, r"data\.train: there is no .*tran\.tsv"),
        ({"source": "fr"}, r"train\.tsv: there is no column 'fr'"),
        ({"test": "../test.tsv"}, r"data\.test: the path '\.\./test\.tsv' leads out of the data folder"),
        ({"test": "train.tsv"}, r"data\.test is train\.tsv, which is the training split"),
        ({"encoding": "utf-16"}, r"train\.tsv"),
        ({"delimiter": ";"}, r"train\.tsv: there is no column 'de', only .*de\\ten"),
        ({"train_size": 49}, r"data\.train_size is 49, but there are only 48 rows"),
        ({"validation": None, "validation_fraction": 0.001}, r"expected at least one"),
        ({"validation": None, "validation_fraction": 0.0, "test": None}, r"nothing to judge the runs on"),
        ({"test": "empty.tsv"}, r"empty\.tsv has no rows"),
        ({"test": "blank.tsv"}, r"blank\.tsv:3: en: got an empty text"),
        ({"test": "ragged.tsv"}, r"ragged\.tsv:3: got 3 fields, expected 2"),
        ({"test": "twice.tsv"}, r"twice\.tsv: .*'de'"),
    ],
)
def test_data_that_cannot_be_used_end_before_training_with_the_place(
    folder: Path, data: dict[str, Any], message: str
) -> None:
    tiny.write_tsv(folder / "empty.tsv", [])
    tiny.write_tsv(folder / "blank.tsv", [("eins", "one"), ("zwei", " ")])
    (folder / "ragged.tsv").write_text("de\ten\neins\tone\nzwei\ttwo\t2\n")
    (folder / "twice.tsv").write_text("de\tde\ten\nein\teins\tone\n")
    with pytest.raises(UserError, match=message):
        tiny.task(folder, data=data).load(0)


def test_rows_that_are_skipped_are_told(folder: Path) -> None:
    tiny.write_tsv(folder / "train.tsv", [*tiny.pairs(40, 0), ("eins", "")])
    splits = tiny.task(folder, data={"on_bad_row": "skip"}).load(0)
    assert len(splits.train) == 40
    assert "1 row of" in splits.notes[0]
    assert "line 42: en: got an empty text" in splits.notes[0]


# Batches and the objective


def test_a_batch_holds_what_the_model_would_make_of_the_labels(folder: Path) -> None:
    task, splits, model = loaded(folder)
    rows = sorted(splits.train.rows, key=lambda row: len(row["labels"]))[::12]
    assert len({len(row["labels"]) for row in rows}) == len(rows)
    batch = task.collate(rows)
    host: Any = model
    assert torch.equal(batch["decoder_input_ids"], host.prepare_decoder_input_ids_from_labels(labels=batch["labels"]))
    for index, row in enumerate(rows):
        sources, targets = len(row["input_ids"]), len(row["labels"])
        assert batch["input_ids"][index, :sources].tolist() == row["input_ids"]
        assert batch["attention_mask"][index].tolist() == [1] * sources + [0] * (batch["input_ids"].size(1) - sources)
        assert batch["labels"][index, :targets].tolist() == row["labels"]
        assert (batch["labels"][index, targets:] == -100).all()
    assert not (batch["decoder_input_ids"] == -100).any()


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("arm", ["plain", "rdrop"])
def test_the_loss_is_that_of_a_hand_written_loop_over_the_tokens_that_count(
    folder: Path, arm: str, smoothing: float
) -> None:
    sections: dict[str, Any] = {
        "rdrop": {"alpha": 2.5, "strategy": "sequential"},
        "training": {"label_smoothing": smoothing},
    }
    task, splits, model = loaded(folder, **sections)
    rows = sorted(splits.train.rows, key=lambda row: len(row["labels"]))[::12]
    batch = task.collate(rows)
    counts = batch["labels"] != -100
    assert 0 < counts.sum() < counts.numel()
    trainer = trainer_of(task, splits, model, arm)
    by_hand: Any = copy.deepcopy(model)
    model.train()
    by_hand.train()

    torch.manual_seed(3)
    loss = trainer.compute_loss(model, dict(batch), num_items_in_batch=counts.sum())
    loss.backward()

    torch.manual_seed(3)
    inputs = {name: column for name, column in batch.items() if name != "labels"}
    total = torch.zeros(())
    passes = [log_softmax(by_hand(**inputs).logits, -1) for _ in range(2 if arm == "rdrop" else 1)]
    tokens = 0
    for row, length in enumerate(counts.sum(1).tolist()):
        for position in range(length):
            tokens += 1
            distributions = [log_probabilities[row, position] for log_probabilities in passes]
            for p in distributions:
                nll = -p[batch["labels"][row, position]]
                total = total + ((1 - smoothing) * nll - smoothing * p.mean()) / len(passes)
            if arm == "rdrop":
                p, q = distributions
                total = total + 2.5 * ((p.exp() * (p - q)).sum() + (q.exp() * (q - p)).sum()) / 2
    expected = total / tokens
    expected.backward()  # type: ignore[no-untyped-call]
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    for (name, found), reference in zip(model.named_parameters(), by_hand.parameters(), strict=True):
        torch.testing.assert_close(found.grad, reference.grad, rtol=1e-4, atol=1e-6, msg=name)


def test_the_learning_rate_falls_with_the_root_of_the_steps_after_so_many_of_warm_up(folder: Path) -> None:
    sections: dict[str, Any] = {
        "training": {"lr_scheduler": "inverse_sqrt", "warmup_steps": 4, "learning_rate": 1e-2, "adam_beta2": 0.9}
    }
    task, splits, model = loaded(folder, **sections)
    trainer = trainer_of(task, splits, model, "plain", steps=40)
    trainer.create_optimizer_and_scheduler(40)
    assert {group["betas"] for group in trainer.optimizer.param_groups} == {(0.9, 0.9)}
    rates = [trainer.lr_scheduler.lr_lambdas[0](step) for step in (0, 1, 4, 16, 36)]
    assert rates == pytest.approx([0, 1 / 4, 1, 1 / 2, 1 / 3])


# Evaluation


def test_evaluation_scores_the_targets_without_smoothing_or_padding(folder: Path) -> None:
    task, splits, model = loaded(folder, training={"label_smoothing": 0.2, "eval_batch_size": 4})
    summed = tokens = right = 0.0
    model.eval()
    for row in splits.test:
        batch = task.collate([row])
        with torch.no_grad():
            scores = model(**batch)["logits"][0].log_softmax(-1)
        labels = batch["labels"][0]
        summed -= float(scores[range(len(labels)), labels].sum())
        right += int((scores.argmax(-1) == labels).sum())
        tokens += len(labels)
    trainer = trainer_of(task, splits, model)
    found = task.evaluate(trainer, splits.test, seed=0, exhibits=False).metrics
    assert found["nll"] == pytest.approx(summed / tokens, rel=1e-5)
    curve = trainer.evaluate()
    assert curve["eval_perplexity"] == pytest.approx(math.exp(curve["eval_nll"]))
    test = trainer.predict(splits.test).metrics
    assert test["test_nll"] == pytest.approx(summed / tokens, rel=1e-5)
    assert test["test_token_accuracy"] == pytest.approx(right / tokens)


def test_outputs_do_not_depend_on_the_batches_they_are_searched_in(folder: Path) -> None:
    task, splits, model = loaded(folder)
    with_opinions(model)
    found = task.write(model, splits.test)
    assert len(set(found)) > 2
    one_by_one = [task.write(model, splits.test.select([index]))[0] for index in range(len(splits.test))]
    assert found == one_by_one


def test_an_evaluation_has_every_metric_and_shows_first_and_least_probable_examples(folder: Path) -> None:
    task, splits, model = loaded(folder, data={"consistency_rows": 2})
    trainer = trainer_of(task, splits, model)
    evaluation = task.evaluate(trainer, splits.test, seed=0, exhibits=True)
    assert evaluation.metrics.keys() == {metric.name for metric in task.metrics}
    first, worst = evaluation.exhibits
    assert first.kind == worst.kind == "listing"
    assert first.columns == ["Source", "Reference", "Translation", "NLL"]
    assert [row[:2] for row in first.rows] == [list(pair) for pair in tiny.pairs(9, 2)]
    assert [row[2] for row in first.rows] == task.write(model, splits.test)
    surprises = [float(row[3]) for row in worst.rows]
    assert surprises == sorted(surprises, reverse=True)
    assert sorted(first.rows) == sorted(worst.rows)
    assert task.evaluate(trainer, splits.test, seed=0, exhibits=False).exhibits == []
    two = task.evaluate(trainer, splits.test.select([0, 1]), seed=0, exhibits=False).metrics
    assert two["consistency_kl"] == evaluation.metrics["consistency_kl"]
    assert two["nll"] != evaluation.metrics["nll"]


# Models


def pretrained(folder: Path, kind: str = "t5", positions: int | None = None) -> str:
    """A folder with a small pretrained model and its tokenizer."""
    task = tiny.task(folder)
    where = folder / kind
    tokenizer = train_vocabulary(
        [f"{source} {target}" for source, target in tiny.pairs(48, 0)], "bpe", 300, append_end=True
    )
    torch.manual_seed(0)
    model: nn.Module
    if kind == "t5":
        config = T5Config(  # type: ignore[call-arg]
            vocab_size=320,
            d_model=16,
            d_kv=8,
            d_ff=16,
            num_layers=1,
            num_heads=2,
            decoder_start_token_id=0,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
        model = T5ForConditionalGeneration(config)
    else:
        task.load(0)
        model = task.build_model()
        config_of: Any = model.config
        if positions is not None:
            config_of.max_position_embeddings = positions
    save_with_tokenizer(model, tokenizer, where)
    return str(where)


@pytest.mark.parametrize("architecture", ["marian", "bart"])
def test_a_network_from_scratch_has_the_shape_and_the_rates_of_the_recipe(folder: Path, architecture: str) -> None:
    shape = {
        "architecture": architecture,
        "encoder_layers": 2,
        "decoder_layers": 1,
        "dropout": 0.25,
        "attention_dropout": 0.125,
        "activation_dropout": 0.0625,
    }
    task, splits, model = loaded(folder, model=shape)
    host: Any = model
    assert (len(host.model.encoder.layers), len(host.model.decoder.layers)) == (2, 1)
    assert host.model.shared.weight is host.lm_head.weight is host.model.decoder.embed_tokens.weight
    assert host.model.shared.num_embeddings == len(task.tokenizer)
    rates = {layer.name.rpartition(".")[2]: layer.rate for layer in stochastic_layers(model) if layer.rate}
    attention = {layer.rate for layer in stochastic_layers(model) if "attn" in layer.name}
    assert attention == {0.125}
    assert rates["activation_dropout"] == 0.0625
    assert {layer.rate for layer in stochastic_layers(model) if layer.name.endswith("layers.0.dropout")} == {0.25}
    trained = trainer_of(task, splits, model, steps=2).train()
    assert math.isfinite(trained.training_loss)
    _, _, from_default = loaded(folder, model={"dropout": None})
    assert {layer.rate for layer in stochastic_layers(from_default)} == {0.0, 0.3}


@pytest.mark.parametrize("kind", ["t5", "marian"])
def test_a_pretrained_model_reads_with_its_own_tokenizer_and_the_prefix(folder: Path, kind: str) -> None:
    name = pretrained(folder, kind)
    task, splits, model = loaded(folder, model={"name": name, "prefix": "acht ", "dropout": 0.25})
    _, unprefixed, _ = loaded(folder, model={"name": name})
    assert texts(task, splits.test, "input_ids") == [f"acht {source}" for source, _ in tiny.pairs(9, 2)]
    assert splits.test["labels"][:] == unprefixed.test["labels"][:]
    assert "tokens learned" not in splits.description
    assert {layer.rate for layer in stochastic_layers(model) if layer.kind != "layer drop"} == {0.25}
    host: Any = model
    batch = task.collate(list(splits.test)[:2])
    assert torch.equal(batch["decoder_input_ids"], host.prepare_decoder_input_ids_from_labels(labels=batch["labels"]))
    trainer = trainer_of(task, splits, model, steps=2)
    trainer.train()
    found = task.evaluate(trainer, splits.test, seed=0, exhibits=False).metrics
    assert all(map(math.isfinite, found.values()))
    task.save(model, folder / "saved")
    again = tiny.task(folder, model={"name": name, "prefix": "acht ", "dropout": 0.25})
    restored = again.restore(folder / "saved")
    assert {layer.rate for layer in stochastic_layers(restored) if layer.kind != "layer drop"} == {0.25}


def test_a_model_that_cannot_be_used_is_refused_with_the_reason(folder: Path) -> None:
    def refusal(**sections: dict[str, Any]) -> str:
        with pytest.raises(UserError) as caught:
            loaded(folder, **sections)
        return str(caught.value)

    assert "model.name: there is no folder" in refusal(model={"name": "no/such/folder"})
    short = pretrained(folder, "marian", positions=20)
    assert refusal(model={"name": short}) == (
        f"data.max_source_length is 40, but {short} (model.name) reads and writes at most 20 tokens; set it to at most "
        "that"
    )
    small = {"max_source_length": 20, "max_target_length": 20}
    assert "generation.max_length is 21, but" in refusal(
        model={"name": short}, data=small, generation={"max_length": 21}
    )
    loaded(folder, model={"name": short}, data=small)
    startless = pretrained(folder)
    path = Path(startless) / "config.json"
    path.write_text(path.read_text().replace('"decoder_start_token_id": 0', '"decoder_start_token_id": null'))
    assert "does not say which token its outputs start from" in refusal(model={"name": startless})
    path.write_text(path.read_text().replace('"vocab_size": 320', '"vocab_size": 290'))
    assert "model.name" in refusal(model={"name": startless})


def test_a_tokenizer_with_more_tokens_than_the_model_is_refused(folder: Path) -> None:
    name = pretrained(folder)
    tokenizer = train_vocabulary([text for pair in tiny.pairs(400, 5) for text in pair], "bpe", 340, append_end=True)
    assert len(tokenizer) > 320
    tokenizer.save_pretrained(name)
    with pytest.raises(UserError, match=r"has 340 tokens, its model only 320"):
        loaded(folder, model={"name": name})


# A trained model on disk


def test_a_saved_model_writes_the_same_from_lines_and_from_tables(folder: Path) -> None:
    task, splits, model = loaded(folder)
    expected = task.write(with_opinions(model), splits.test)
    assert len(set(expected)) > 2
    task.save(model, folder / "model")
    other = tiny.task(folder)
    restored = other.restore(folder / "model")
    (folder / "new.txt").write_text("".join(f"{source}\n" for source, _ in tiny.pairs(9, 2)), encoding="utf-8")
    for name in ("new.txt", "test.tsv"):
        rows = other.read([folder / name])
        answers = list(other.predict(restored, rows, samples=0, seed=0))
        assert [answer["translation"] for answer in answers] == expected
        assert [answer["source"] for answer in answers] == [source for source, _ in tiny.pairs(9, 2)]
    config = search(restored, other.recipe.generation, 40)
    for answer, row in zip(answers, splits.test, strict=True):
        assert answer.keys() == {"source", "translation", "confidence", "log_probability"}
        ids = outputs(restored, other.collate([{"input_ids": row["input_ids"]}]), config)
        batch = other.collate([{"input_ids": row["input_ids"], "labels": ids[0].tolist()}])
        with torch.no_grad():
            scores = restored(**batch)["logits"][0].log_softmax(-1)[range(ids.size(1)), ids[0]]
        assert answer["log_probability"] == pytest.approx(float(scores.sum()), rel=1e-4)
        assert answer["confidence"] == pytest.approx(math.exp(scores.mean()), rel=1e-4)


def test_monte_carlo_dropout_scores_the_same_output_under_many_masks(folder: Path) -> None:
    task, _, model = loaded(folder, model={"dropout": 0.3})
    task.save(model, folder / "model")
    other = tiny.task(folder, model={"dropout": 0.3})
    restored = other.restore(folder / "model")
    rows = other.read([folder / "test.tsv"])
    off = list(other.predict(restored, rows, samples=0, seed=0))
    on = list(other.predict(restored, rows, samples=30, seed=0))
    assert [answer["translation"] for answer in on] == [answer["translation"] for answer in off]
    for single, averaged in zip(off, on, strict=True):
        assert averaged.keys() == {*single, "spread", "log_probability_spread"}
        assert 0 < averaged["spread"] < 0.1
        assert 0 < averaged["log_probability_spread"] < 5
        assert averaged["log_probability"] == pytest.approx(single["log_probability"], rel=0.2)
        assert averaged["log_probability"] != single["log_probability"]
    assert list(other.predict(restored, rows, samples=30, seed=0)) == on
    assert list(other.predict(restored, rows, samples=30, seed=1)) != on
    assert {type(value) for value in on[0].values()} == {str, float}


def test_files_to_predict_on_that_cannot_be_used_are_named(folder: Path) -> None:
    task, _, model = loaded(folder)
    task.save(model, folder / "model")
    task.restore(folder / "model")
    (folder / "gap.txt").write_text("eins\n\nzwei\n")
    (folder / "nothing.txt").write_text("")
    tiny.write_tsv(folder / "other.tsv", tiny.pairs(2), header=("src", "trg"))
    with pytest.raises(UserError, match=r"gap\.txt:2: de: got an empty text"):
        task.read([folder / "gap.txt"])
    with pytest.raises(UserError, match=r"there is no text in .*nothing\.txt"):
        task.read([folder / "nothing.txt"])
    with pytest.raises(UserError, match=r"other\.tsv: there is no column 'de'"):
        task.read([folder / "other.tsv"])
    skipping = tiny.task(folder, data={"on_bad_row": "skip"})
    skipping.restore(folder / "model")
    with pytest.warns(RDropWarning, match=r"1 row of .*gap\.txt was skipped .*line 2"):
        assert skipping.read([folder / "gap.txt"])["source"][:] == ["eins", "zwei"]


def test_a_folder_without_a_model_and_one_of_other_training_data_are_refused(folder: Path) -> None:
    task, _, model = loaded(folder)
    with pytest.raises(UserError, match=r"holds no model: there is no config\.json"):
        task.restore(folder)
    task.save(model, folder / "model")
    task.restore(folder / "model")
    tiny.write_tsv(folder / "train.tsv", [("ja", "yes"), ("nein", "no")] * 30)
    other = tiny.task(folder)
    other.load(0)
    with pytest.raises(UserError, match=r"the vocabulary that train\.tsv gives .* is not that of the model in"):
        other.restore(folder / "model")


def test_the_network_learns_to_translate(folder: Path) -> None:
    tiny.write_tsv(folder / "train.tsv", tiny.pairs(400, 0, longest=2))
    sections: dict[str, Any] = {
        "model": tiny.SMALL | {"d_model": 32, "ffn_dim": 64, "dropout": 0.0},
        "training": {
            "batch_size": 64,
            "batch_tokens": 2000,
            "learning_rate": 1e-2,
            "warmup_steps": 20,
            "eval_every_steps": 500,
        },
    }
    task, splits, model = loaded(folder, **sections)
    trainer_of(task, splits, model, "plain", steps=300).train()
    (folder / "new.txt").write_text("sieben eins\nvier\n")
    answers = task.predict(model, task.read([folder / "new.txt"]), samples=0, seed=0)
    assert [answer["translation"] for answer in answers] == ["seven one", "four"]
