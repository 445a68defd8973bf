from __future__ import annotations

import gzip
import json
import math
import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import tiny_translation as tiny
from rdrop.errors import UserError
from rdrop.stochastic import stochastic_layers
from rdrop.toolkit.arms import objective
from rdrop.toolkit.recipe_file import load_recipe
from rdrop.toolkit.runs import RunRecord
from rdrop.toolkit.tasks import task_of
from rdrop.toolkit.tasks.translation import TranslationRecipe, TranslationTask
from rdrop.toolkit.train import build_model, make_trainer, survey, train_run

DATA = Path(os.environ.get("RDROP_DATA", Path(__file__).parents[4] / "shared" / "data"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tiny.write_splits(tmp_path)
    return tmp_path


def lasting(record: RunRecord) -> dict[str, Any]:
    """What must not depend on the clock."""
    return record.model_dump(exclude={"seconds", "step_ms"})


def run(recipe: TranslationRecipe, arm: Any, seed: int = 0) -> RunRecord:
    return train_run(recipe, arm, seed, survey(recipe).nominal_steps, lambda _: None)


@pytest.mark.parametrize("arm", ["plain", "twice", "rdrop", "longer"])
def test_every_arm_runs_from_the_tables_to_the_metrics(folder: Path, arm: str) -> None:
    record = run(tiny.recipe(folder), arm)
    found = record.run
    assert (found.status, found.error) == ("finished", None)
    assert found.metrics.keys() == {
        *("bleu", "nll", "chrf"),
        *("consistency_kl", "agreement", "accuracy_averaged", "nll_averaged"),
    }
    assert found.curves.keys() >= {"train_loss", "task_loss", "eval_nll", "eval_perplexity", "eval_token_accuracy"}
    assert ("divergence" in found.curves) is (arm in ("twice", "rdrop"))
    assert found.optimizer_steps == (6 if arm == "longer" else 3)
    assert record.step_compute == (pytest.approx(2.0) if arm in ("twice", "rdrop") else 1.0)
    assert [exhibit.title for exhibit in found.exhibits] == ["Examples", "Least probable references"]
    assert "48 pairs of train.tsv" in record.data


def test_a_run_is_repeated_bit_for_bit_and_seeds_differ(folder: Path) -> None:
    recipe = tiny.recipe(folder)
    first = run(recipe, "rdrop")
    assert lasting(run(recipe, "rdrop")) == lasting(first)
    assert run(recipe, "rdrop", seed=1).run.metrics != first.run.metrics


def test_all_kinds_of_tables_hold_the_same_pairs(folder: Path) -> None:
    rows = [{"de": source, "en": target, "id": index} for index, (source, target) in enumerate(tiny.pairs(48, 0))]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "train.jsonl").write_text(lines)
    (folder / "train.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    (folder / "train.csv").write_text("id,de,en\n" + "".join(f'{r["id"]},"{r["de"]}",{r["en"]}\n' for r in rows))
    (folder / "train.tsv.gz").write_bytes(gzip.compress((folder / "train.tsv").read_bytes()))
    pq.write_table(pa.Table.from_pylist(rows), folder / "train.parquet")
    found = {}
    for name in ("train.tsv", "train.jsonl", "train.jsonl.gz", "train.csv", "train.tsv.gz", "train.parquet"):
        splits: Any = tiny.task(folder, data={"train": name}, training={"batching": "random"}).load(0)
        found[name] = splits.train.to_dict()
    assert all(rows == found["train.tsv"] for rows in found.values())


def test_the_notes_name_the_settings_of_the_scores(folder: Path) -> None:
    notes = survey(tiny.recipe(folder, data={"bleu_tokenizer": "char"})).notes
    assert "BLEU nrefs:1|case:mixed|eff:no|tok:char|smooth:exp|version:" in notes[-1]
    assert "chrF nrefs:1|case:mixed|eff:yes|nc:6|nw:0|space:no|version:" in notes[-1]


def test_bleu_is_that_of_the_outputs_and_the_first_references(folder: Path) -> None:
    task = tiny.task(folder)
    references = [["one two three four"], ["five six seven eight"]]
    perfect = task.text_metrics(["one two three four", "five six seven eight"], references, 6.0, 4)
    assert perfect == {"bleu": pytest.approx(100.0), "nll": 1.5, "chrf": pytest.approx(100.0)}
    assert task.text_metrics(["one two three four", ""], references, 6.0, 4)["bleu"] < 50
    assert [metric.name for metric in task.metrics][:3] == ["bleu", "nll", "chrf"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["heads=3"], r"model\.heads: got 3, expected a number that divides model\.d_model, which is 256"),
        (["batch_tokens=100"], r"training\.batch_tokens: got 100, expected at least 128"),
        (["streaming=true", "data.validation=dev.tsv"], r"training\.batching: got tokens, but of a streamed"),
        (["streaming=true", "batching=random"], r"data\.validation: got null, and a streamed training split"),
        (
            ["streaming=true", "batching=random", "data.validation=dev.tsv", "train_size=5"],
            r"data\.train_size: got 5, but nothing can be drawn from a streamed",
        ),
        (["min_length=20", "generation.max_length=10"], r"generation\.min_length: got 20, expected at most 10"),
        (["vocab_size=200"], r"model\.vocab_size: got 200, expected a whole number, at least 259"),
        (["lr_scheduler=inverse"], r"training\.lr_scheduler: got .*did you mean inverse_sqrt"),
        (["model.dropout=0", "rdrop.alpha=0"], r"rdrop\.alpha: got 0, and 0 for model\.dropout"),
    ],
)
def test_a_recipe_that_cannot_be_is_refused(words: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_recipe("translation", words)


def test_other_rates_than_that_of_the_units_make_the_passes_differ() -> None:
    recipe = load_recipe("translation", ["model.dropout=0", "rdrop.alpha=0", "attention_dropout=0.1"])
    assert not recipe.without_dropout_twice_is_plain()


FULL_SIZE = {
    "iwslt14-de-en": ("de", "en", 10_000, (512, 6, 6, 4, 1024), 0.3, 1),
    "wmt14-en-de": ("en", "de", 32_000, (1024, 6, 6, 16, 4096), 0.1, 8),
    "wmt14-en-fr": ("en", "fr", 40_000, (1024, 6, 6, 16, 4096), 0.1, 8),
}


@pytest.mark.parametrize("name", FULL_SIZE)
def test_a_recipe_of_the_paper_loads_builds_and_runs_when_shrunk(tmp_path: Path, name: str) -> None:
    source, target, tokens, shape, dropout, batches = FULL_SIZE[name]
    for split, count in (("train", 300), ("valid", 4), ("test", 4)):
        tiny.write_tsv(tmp_path / f"{split}.tsv", tiny.pairs(count, count), header=(source, target))
    full = load_recipe(name, [f"folder={tmp_path}"])
    assert isinstance(full, TranslationRecipe)
    model, training = full.model, full.training
    assert (model.d_model, model.encoder_layers, model.decoder_layers, model.heads, model.ffn_dim) == shape
    assert (model.vocab_size, model.dropout, full.rdrop.alpha) == (tokens, dropout, 2.5)
    assert (training.batch_tokens, training.gradient_accumulation_steps, training.label_smoothing) == (
        4096,
        batches,
        0.1,
    )
    words = [
        *("steps=2", "d_model=16", "ffn_dim=16", "vocab_size=300", "generation.max_length=5", "precision=float32"),
        "batch_tokens=300",
    ]
    task: Any = task_of(load_recipe(name, [f"folder={tmp_path}", *words]))
    splits = task.load(0)
    network = build_model(task, 0)
    assert {layer.rate for layer in stochastic_layers(network)} == {0.0, dropout}
    where = str(tmp_path / "run")
    trainer: Any = make_trainer(
        task, objective("rdrop", task.recipe), 0, network, splits, steps=2, nominal=2, folder=where
    )
    trainer.train()
    assert trainer.state.global_step == 2
    assert {group["betas"] for group in trainer.optimizer.param_groups} == {(0.9, 0.98)}
    found = task.evaluate(trainer, splits.test, seed=0, exhibits=False).metrics
    assert all(map(math.isfinite, found.values()))


def test_multi30k_is_read_and_translated_back_from_its_tokens() -> None:
    where = DATA / "multi30k_de_en"
    if not where.is_dir():
        pytest.skip(f"there is no {where}; set RDROP_DATA to the folder that holds multi30k_de_en")
    words = [
        *(
            f"folder={where}",
            "data.train=dev.tsv.gz",
            "data.validation=test_2017_mscoco.tsv.gz",
            "data.test=test.tsv.gz",
        ),
        *("data.source=de", "data.target=en", "vocab_size=2000"),
    ]
    task: Any = task_of(load_recipe("translation", words))
    assert isinstance(task, TranslationTask)
    splits: Any = task.load(0)
    assert (len(splits.train), len(splits.validation), len(splits.test)) == (1014, 461, 1000)
    row = splits.test[0]
    tokenizer: Any = task.tokenizer
    assert tokenizer.decode(row["input_ids"], skip_special_tokens=True) == row["source"]
    assert [tokenizer.decode(row["labels"], skip_special_tokens=True)] == row["references"]
