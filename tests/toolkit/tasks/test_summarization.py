from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

import pytest

import tiny_translation as tiny
from rdrop.errors import UserError
from rdrop.toolkit.arms import objective
from rdrop.toolkit.pretrained import save_with_tokenizer
from rdrop.toolkit.recipe_file import load_recipe
from rdrop.toolkit.tasks import task_of
from rdrop.toolkit.tasks.summarization import SummarizationRecipe, SummarizationTask
from rdrop.toolkit.train import build_model, make_trainer, survey, train_run

DATA = Path(os.environ.get("RDROP_DATA", Path(__file__).parents[4] / "shared" / "data"))


def documents(count: int, seed: int) -> list[dict[str, Any]]:
    """Numbers in words, and their first two as a summary."""
    found = []
    for number, (_, text) in enumerate(tiny.pairs(count, seed, longest=9)):
        summary = " ".join(text.split()[:2])
        found.append({"id": number, "document": text, "summary": summary, "others": [text.split()[0], text]})
    return found


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, count, seed in (("train", 40, 0), ("dev", 6, 1), ("test", 6, 2)):
        write(tmp_path / f"{name}.jsonl", documents(count, seed))
    return tmp_path


def recipe(folder: Path, **sections: dict[str, Any]) -> SummarizationRecipe:
    defaults: dict[str, dict[str, Any]] = {
        "data": {
            "folder": str(folder),
            "validation": "dev.jsonl",
            "test": "test.jsonl",
            "references": "others",
            "max_source_length": 30,
            "max_target_length": 12,
        },
        "model": dict(tiny.SMALL),
        "training": {"steps": 2, "eval_every_steps": 2, "batch_size": 8},
        "generation": {"max_length": 6},
        "compare": {"samples": 2, "seeds": [0]},
    }
    return SummarizationRecipe.model_validate(
        {name: defaults.get(name, {}) | sections.get(name, {}) for name in defaults | sections}
    )


def test_a_run_reports_rouge_and_what_was_cut(folder: Path) -> None:
    chosen = recipe(folder, data={"max_source_length": 5})
    record = train_run(chosen, "rdrop", 0, survey(chosen).nominal_steps, lambda _: None)
    assert (record.run.status, record.run.error) == ("finished", None)
    assert list(record.run.metrics)[:5] == ["rouge1", "nll", "rouge2", "rougeL", "rougeLsum"]
    assert record.run.exhibits[0].kind == "listing"
    assert record.run.exhibits[0].columns[2] == "Summary"
    notes = survey(chosen).notes
    assert any("sources of the training split have more than 5 tokens (data.max_source_length)" in n for n in notes)


def test_further_references_are_read_where_outputs_are_judged(folder: Path) -> None:
    splits: Any = SummarizationTask(recipe(folder)).load(0)
    for rows, expected in ((splits.validation, documents(6, 1)), (splits.test, documents(6, 2))):
        assert rows["references"][:] == [[row["summary"], *row["others"]] for row in expected]
    alone: Any = SummarizationTask(recipe(folder, data={"references": None})).load(0)
    assert alone.test["references"][:] == [[row["summary"]] for row in documents(6, 2)]
    write(
        folder / "train.jsonl", [{"document": row["document"], "summary": row["summary"]} for row in documents(40, 0)]
    )
    SummarizationTask(recipe(folder)).load(0)
    write(folder / "test.jsonl", [{"document": "one", "summary": "one"}])
    with pytest.raises(UserError, match=r"test\.jsonl.*'others'"):
        SummarizationTask(recipe(folder)).load(0)


def test_the_closest_reference_counts(folder: Path) -> None:
    task = SummarizationTask(recipe(folder))
    found = task.text_metrics(["one two"], [["nine", "one two", "two"]], 3.0, 2)
    assert found == {"rouge1": 100.0, "nll": 1.5, "rouge2": 100.0, "rougeL": 100.0, "rougeLsum": 100.0}
    assert [metric.name for metric in task.metrics][:5] == list(found)


def test_references_that_rouge_cannot_read_end_the_run_before_it_starts(folder: Path) -> None:
    greek = {"document": "ένα δύο", "summary": "δύο", "others": ["ένα"]}
    write(folder / "test.jsonl", [greek])
    with pytest.raises(UserError, match="ROUGE reads only words of the letters a-z and digits"):
        survey(recipe(folder))
    survey(recipe(folder, compare={"split": "validation"}))


def test_a_trained_model_summarizes_new_documents(folder: Path) -> None:
    task = SummarizationTask(recipe(folder))
    task.load(0)
    task.save(build_model(task, 0), folder / "model")
    other = SummarizationTask(recipe(folder))
    model = other.restore(folder / "model")
    answers = list(other.predict(model, other.read([folder / "test.jsonl"]), samples=2, seed=0))
    assert [answer["source"] for answer in answers] == [row["document"] for row in documents(6, 2)]
    assert answers[0].keys() >= {"summary", "confidence", "spread"}


def test_the_recipe_of_the_paper_loads_and_runs_when_shrunk(folder: Path) -> None:
    full = load_recipe("cnn-dailymail")
    assert isinstance(full, SummarizationRecipe)
    training = full.training
    assert (full.model.name, full.rdrop.alpha, training.steps) == ("facebook/bart-large", 0.35, 20_000)
    assert (training.batch_tokens, training.gradient_accumulation_steps, training.learning_rate) == (1024, 64, 3e-5)
    small = SummarizationTask(recipe(folder, model=tiny.SMALL | {"architecture": "bart"}))
    small.load(0)
    save_with_tokenizer(build_model(small, 0), small.tokenizer, folder / "bart")
    for name, split in (("train", "train"), ("dev", "validation"), ("test", "test")):
        rows = [json.loads(line) for line in (folder / f"{name}.jsonl").read_text().splitlines()]
        write(folder / f"{split}.jsonl", [{"article": row["document"], "highlights": row["summary"]} for row in rows])
    words = [
        *(f"folder={folder}", f"model.name={folder / 'bart'}", "batch_size=2", "steps=2", "precision=float32"),
        *("max_source_length=30", "max_target_length=30", "generation.max_length=9", "min_length=3"),
        *("batch_tokens=60", "gradient_accumulation_steps=3"),
    ]
    task: Any = task_of(load_recipe("cnn-dailymail", words))
    splits = task.load(0)
    trainer: Any = make_trainer(
        task,
        objective("rdrop", task.recipe),
        0,
        build_model(task, 0),
        splits,
        steps=2,
        nominal=2,
        folder=str(folder / "run"),
    )
    trainer.train()
    assert trainer.state.global_step == 2
    assert trainer.lr_scheduler.get_last_lr()[0] == pytest.approx(2 / 500 * 3e-5)
    found = task.evaluate(trainer, splits.test, seed=0, exhibits=False).metrics
    assert all(map(math.isfinite, found.values()))


def test_subject_lines_of_mails_are_read_with_those_of_the_annotators() -> None:
    where = DATA / "aeslc"
    if not where.is_dir():
        pytest.skip(f"there is no {where}; set RDROP_DATA to the folder that holds aeslc")
    words = [
        *(f"folder={where}", "data.train=test.jsonl.gz", "data.validation=dev.jsonl.gz", "data.references=annotations"),
        *("train_size=100", "vocab_size=1000", "max_source_length=100"),
    ]
    task: Any = task_of(load_recipe("summarization", words))
    splits = task.load(0)
    assert (len(splits.train), len(splits.validation)) == (100, 1960)
    assert {len(references) for references in splits.validation["references"]} == {4}
    assert "of 1,960 sources of the validation split have more than 100 tokens" in " ".join(splits.notes)
