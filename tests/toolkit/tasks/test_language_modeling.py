from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import set_seed

from rdrop.errors import UserError
from rdrop.passes import forward_passes
from rdrop.toolkit.arms import objective
from rdrop.toolkit.language import documents as text_documents
from rdrop.toolkit.language.models import continued
from rdrop.toolkit.recipe_file import built_in_recipes, load_recipe, recipe_text
from rdrop.toolkit.summary import Listing
from rdrop.toolkit.task import Splits
from rdrop.toolkit.tasks import language_modeling, task_class, task_of
from rdrop.toolkit.tasks.language_modeling import LanguageRecipe, LanguageTask
from rdrop.toolkit.train import build_model, make_trainer, survey, train_run

WORDS = ["the", "cat", "and", "dog", "saw", "a", "bird", "near", "old", "tree", "while", "it", "was", "raining"]


def sentences(count: int, seed: int) -> str:
    generator = np.random.default_rng(seed)
    return "".join(" ".join(generator.choice(WORDS, 8)) + ".\n" for _ in range(count))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for seed, (name, count) in enumerate([("train.txt", 120), ("dev.txt", 12), ("test.txt", 15)]):
        (tmp_path / name).write_text(sentences(count, seed))
    return tmp_path


def recipe(folder: Path, **sections: dict[str, Any]) -> LanguageRecipe:
    """A tiny comparison on characters."""
    data = {
        "folder": str(folder),
        "validation": "dev.txt",
        "test": "test.txt",
        "vocabulary": "character",
        "vocabulary_size": None,
        "block_size": 32,
        "consistency_blocks": 3,
    }
    return LanguageRecipe.model_validate(
        {
            "data": data | sections.pop("data", {}),
            "model": {"width": 16, "layers": 1, "heads": 2} | sections.pop("model", {}),
            "training": {"steps": 4, "batch_size": 4, "eval_every_steps": 2} | sections.pop("training", {}),
            "continuation": {"tokens": 8},
            "compare": {"samples": 2, "arms": ["plain", "rdrop"], "seeds": [0]} | sections.pop("compare", {}),
        }
        | sections
    )


def loaded(folder: Path, **data: Any) -> tuple[LanguageTask, Splits]:
    task = LanguageTask(recipe(folder, data=data))
    return task, task.load(0)


def silent(steps: int) -> None:
    """Progress that nobody watches."""


def trainer_of(task: LanguageTask, splits: Splits, model: Any, folder: Path) -> Any:
    goal = objective("rdrop", task.recipe)
    return make_trainer(task, goal, 0, model, splits, steps=2, nominal=2, folder=str(folder / "out"))


# Data


def test_the_splits_are_told_with_their_counts(folder: Path) -> None:
    task, splits = loaded(folder)
    train, dev, test = ((folder / f"{name}.txt").read_text() for name in ("train", "dev", "test"))
    assert task.tokenizer.get_vocab().keys() == {"<pad>", "<s>", "</s>", "<unk>", *train}
    assert sum(int((block["labels"] != -100).sum()) for block in splits.train) == len(train) + 1
    assert splits.description == (
        f"Running text in characters (a vocabulary of {len(task.tokenizer)}) and blocks of 32: {len(train):,} tokens "
        f"of 1 document of train.txt for training, {len(dev)} tokens of 1 document of dev.txt for validation, "
        f"{len(test)} tokens of 1 document of test.txt for testing."
    )
    assert splits.notes == ()


def test_the_end_of_the_training_text_is_held_out_and_no_vocabulary_is_learned_from_it(folder: Path) -> None:
    text = sentences(90, 7) + "Ω" * 9 + "\n" + sentences(9, 8)
    (folder / "train.txt").write_text(text)
    task, splits = loaded(folder, validation=None, test=None, validation_fraction=0.12)
    assert "Ω" not in task.tokenizer.get_vocab()
    kept, held_out = splits.train, splits.validation
    assert held_out is not None
    assert splits.test is None
    assert sum(int((block["labels"] != -100).sum()) for block in kept) - 1 + held_out.characters == len(text)
    assert "of the end of train.txt for validation, no test split." in splits.description
    assert splits.notes == (
        f"9 of the {held_out.tokens} tokens of the validation split ({9 / held_out.tokens:.1%}) are <unk>: they are "
        "not in the vocabulary, or are written so in the text. Perplexity counts them as predictions of <unk>, which "
        "is easier than to predict the words or characters themselves.",
    )


def test_training_blocks_are_drawn_by_the_seed(folder: Path) -> None:
    def drawn(seed: int, **data: Any) -> list[list[int]]:
        splits = LanguageTask(recipe(folder, data={"train_size": 20, **data})).load(seed)
        assert "of train.txt for training, 20 of its" in splits.description
        return [block["input_ids"].tolist() for block in splits.train]

    assert drawn(0) == drawn(0) != drawn(1)
    assert drawn(0, split_seed=3) == drawn(1, split_seed=3)
    with pytest.raises(
        UserError, match=r"^the blocks of train\.txt: data\.train_size is 9,999, but there are only 1\d\d"
    ):
        drawn(0, train_size=9999)


def test_the_vocabulary_is_learned_from_the_first_characters_alone(folder: Path) -> None:
    task, _ = loaded(folder, vocabulary_sample=3)
    assert set(task.tokenizer.get_vocab()) - {"<pad>", "<s>", "</s>", "<unk>"} == set(
        (folder / "train.txt").read_text()[:3]
    )


def test_words_bytes_and_documents_are_those_of_the_recipe(folder: Path) -> None:
    task, splits = loaded(folder, vocabulary="word", documents="line", cross_documents=False)
    assert task.tokenizer.convert_ids_to_tokens(splits.train[0]["input_ids"])[-1] == "</s>"
    assert len(splits.train) == 120
    assert {metric.name for metric in task.metrics} & {"bits_per_character"} == set()
    pieces, _ = loaded(folder, vocabulary="bpe", vocabulary_size=300)
    assert len(pieces.tokenizer) == 300
    assert [metric.name for metric in pieces.metrics][:3] == ["perplexity", "nll", "bits_per_character"]
    assert not pieces.metrics[0].higher_is_better


def test_bad_rows_are_skipped_and_told(folder: Path) -> None:
    rows = [{"text": "the cat"}, {"text": None}, {"text": "saw a dog"}]
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows * 20))
    with pytest.raises(
        UserError, match=r"train\.jsonl:2: text: got null, expected text\. Repair the row, or set data\."
    ):
        loaded(folder, train="train.jsonl")
    _, splits = loaded(folder, train="train.jsonl", on_bad_row="skip")
    assert "20 rows of" in splits.notes[0]
    assert "40 documents of train.jsonl for training" in splits.description


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"train": "missing.txt"}, r"^data\.train: there is no .*missing\.txt"),
        ({"test": "../test.txt"}, r"^data\.test: the path '\.\./test\.txt' leads out of the data folder"),
        (
            {"validation": "train.txt"},
            r"^data\.validation is train\.txt, which is the training split; name another file",
        ),
        ({"validation": "empty.txt"}, r"empty\.txt has no text in it; expected at least one word"),
        ({"validation": None, "validation_fraction": 0.0}, r"^train\.txt: of .* leaves no text on one side"),
        ({"vocabulary": "bpe", "vocabulary_size": 100}, r"the vocabulary's size is 100; expected at least 259"),
    ],
)
def test_data_that_cannot_be_used_are_told_before_training(folder: Path, data: dict[str, Any], message: str) -> None:
    (folder / "empty.txt").write_text(" \n")
    with pytest.raises(UserError, match=message):
        survey(recipe(folder, data=data))


def test_fewer_blocks_than_a_batch_are_told(folder: Path) -> None:
    with pytest.raises(UserError, match=r"training\.batch_size is 4, but there are only 2 training examples"):
        survey(recipe(folder, data={"train_size": 2}))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["data.stride=128"], r"data\.stride: got 128, expected less than data\.block_size, which is 128: the first"),
        (["streaming=true"], r"data\.validation: got null, and a streamed training text has no part to hold out"),
        (
            ["streaming=true", "validation=dev.txt", "train_size=9"],
            r"data\.train_size: got 9, but nothing can be drawn from a streamed training text; write null",
        ),
        (
            ["continuation.tokens=128"],
            r"continuation\.tokens: got 128, expected less than data\.block_size, which is 128",
        ),
        (
            ["vocabulary_size=null"],
            r"data\.vocabulary_size: got null, and bpe may merge without end; expected a number",
        ),
        (["vocabulary=bytes"], r"data\.vocabulary: got the text 'bytes', expected one of bpe, word, character"),
        (["model.heads=3"], r"model\.heads: got 3, expected a number that divides model\.width, which is 128"),
    ],
)
def test_impossible_values_are_told_by_key(words: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_recipe("language-modeling", words)


# Streaming


def test_streamed_blocks_are_those_of_memory_in_another_order(folder: Path) -> None:
    _, memory = loaded(folder)
    task, streamed = loaded(folder, streaming=True, shuffle_buffer=50)
    assert "train.txt streamed for training" in streamed.description
    expected = [block["input_ids"].tolist() for block in memory.train]
    size = len(expected)
    found = [list(block["input_ids"]) for block in islice(streamed.train, 2 * size)]
    first, second = found[:size], found[size:]
    assert sorted(first) == sorted(second) == sorted(expected)
    assert expected != first != second
    other = LanguageTask(recipe(folder, data={"streaming": True, "shuffle_buffer": 50})).load(1)
    assert [list(block["input_ids"]) for block in islice(other.train, size)] != first
    batch = task.collate(list(islice(streamed.train, 4)))
    assert batch["labels"].shape == batch["input_ids"].shape
    with pytest.raises(UserError, match=r"training\.steps is null, but the length of streamed data is not known"):
        survey(recipe(folder, data={"streaming": True}, training={"steps": None}))


def test_a_stream_is_read_as_it_is_trained_on(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = 0

    def endless(path: Path, encoding: str) -> Iterator[str]:
        nonlocal lines
        while path.name == "train.txt" or lines == 0:
            lines += 1
            assert lines < 100_000
            yield "the cat saw a dog near the tree\n"

    monkeypatch.setattr(text_documents, "text_lines", endless)
    _, splits = loaded(folder, streaming=True, shuffle_buffer=8, vocabulary_sample=500, validation="dev.txt", test=None)
    rows = iter(splits.train)
    assert [len(next(rows)["labels"]) for _ in range(20)] == [32] * 20


def test_a_streamed_run_is_repeated_bit_for_bit(folder: Path) -> None:
    streamed = recipe(folder, data={"streaming": True, "shuffle_buffer": 20})
    first, second = (train_run(streamed, "rdrop", 0, 4, silent).run for _ in range(2))
    assert first.error is None
    assert first == second


# What is minimised, and where


def test_loss_and_divergence_count_exactly_the_predicted_positions(folder: Path) -> None:
    task, splits = loaded(folder, documents="line", cross_documents=False, block_size=64)
    model = build_model(task, 0)
    batch: dict[str, Any] = task.collate([splits.train[index] for index in range(6)])
    assert (batch["attention_mask"] == 0).any()
    labels = batch.pop("labels")
    trainer = trainer_of(task, splits, model, folder)
    model.train()
    set_seed(5)
    loss = trainer.compute_loss(model, {**batch, "labels": labels})
    set_seed(5)
    logits = forward_passes(model, passes=2, **batch)["logits"].log_softmax(-1)
    terms: list[Tensor] = []
    for row in range(6):
        text = str(task.tokenizer.decode(batch["input_ids"][row][batch["attention_mask"][row] == 1].tolist()))
        assert text.startswith("<s>")
        assert text.endswith(".</s>")
        for position in range(len(text) - len("<s></s>") + 1):  # every character and the end, from the one before it
            first, second = logits[:, row, position]
            target = batch["input_ids"][row, position + 1]
            both = (first.exp() - second.exp()) * (first - second)
            terms.append(-(first[target] + second[target]) / 2 + task.recipe.rdrop.alpha * both.sum() / 2)
    torch.testing.assert_close(loss, torch.stack(terms).mean())
    assert len(terms) == int((labels != -100).sum())


def perplexity_token_by_token(task: LanguageTask, model: Any, text: str, new: int) -> float:
    """Of a text of one document, each token predicted by itself from the context that its block gives it."""
    ids = [1, *task.tokenizer(text)["input_ids"], 2]
    size, total = task.recipe.data.block_size, 0.0
    with torch.no_grad():
        for position in range(1, len(ids)):
            # The first block predicts all but its first token, each later one the last `new`, and the last the rest.
            block = max(0, -(-(position - (size - 1)) // new))
            context = ids[block * new : position]
            logits = model(input_ids=torch.tensor([context]))["logits"][0, -1]
            total -= float(logits.log_softmax(-1)[ids[position]])
    return math.exp(total / (len(ids) - 1))


@pytest.mark.parametrize("stride", [None, 5])
def test_perplexity_is_that_of_a_plain_loop_over_all_tokens(folder: Path, stride: int | None) -> None:
    task, splits = loaded(folder, stride=stride, block_size=16)
    model = build_model(task, 0).eval()
    trainer = trainer_of(task, splits, model, folder)
    found = task.evaluate(trainer, splits.test, seed=0, exhibits=False)
    text = (folder / "test.txt").read_text()
    expected = perplexity_token_by_token(task, model.eval(), text, stride or 15)
    assert found.metrics["perplexity"] == pytest.approx(expected, rel=1e-5)
    bits = math.log2(expected) * (len(text) + 1) / len(text)
    assert found.metrics["bits_per_character"] == pytest.approx(bits, rel=1e-5)
    assert trainer.evaluate(splits.test)["eval_perplexity"] == pytest.approx(expected, rel=1e-5)


def test_a_longer_context_in_evaluation_predicts_the_same_tokens(folder: Path) -> None:
    def tested(stride: int | None) -> list[Any]:
        splits = loaded(folder, stride=stride)[1]
        assert splits.test is not None
        assert len(splits.train) == len(loaded(folder)[1].train)
        return list(splits.test)

    apart, near = tested(None), tested(3)
    assert len(near) > 5 * len(apart)
    counted = [sum(int((row["labels"] != -100).sum()) for row in rows) for rows in (apart, near)]
    assert counted == [len((folder / "test.txt").read_text()) + 1] * 2


def test_consistency_is_measured_on_predicted_positions_of_some_blocks(folder: Path) -> None:
    task, splits = loaded(folder)
    model = build_model(task, 0)
    trainer = trainer_of(task, splits, model, folder)
    found = task.consistency(trainer, splits.test, seed=0)
    test = list(splits.test or [])
    set_seed(0)
    [batch] = task.batches([test[0], test[(len(test) - 1) // 2], test[-1]], model)
    counted = batch["labels"][:, 1:] != -100
    targets = batch["input_ids"][:, 1:][counted]
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    with torch.no_grad():
        off = model.eval()(**inputs)["logits"][:, :-1][counted].log_softmax(-1)
        model.train()
        on = torch.stack([model(**inputs)["logits"][:, :-1][counted].softmax(-1) for _ in range(2)]).mean(0)
    model.eval()
    assert found["consistency_kl"] == pytest.approx(float((on * (on.log() - off)).sum(-1).mean()), rel=1e-4)
    assert found["nll_averaged"] == pytest.approx(float(-on[torch.arange(len(on)), targets].log().mean()), rel=1e-5)


# Whole runs


@pytest.mark.parametrize("arm", ["plain", "rdrop"])
def test_a_run_has_everything_that_the_report_shows(folder: Path, arm: Any) -> None:
    small = recipe(folder)
    record = train_run(small, arm, 0, survey(small).nominal_steps, silent)
    run = record.run
    assert (run.status, run.error, run.optimizer_steps) == ("finished", None, 4)
    assert set(run.metrics) == {metric.name for metric in survey(small).metrics}
    assert run.curves["eval_perplexity"].steps == [2, 4]
    assert record.step_compute == (1.0 if arm == "plain" else 2.0)
    assert record.model_dump(exclude={"seconds", "step_ms"}) == train_run(small, arm, 0, 4, silent).model_dump(
        exclude={"seconds", "step_ms"}
    )
    continuations, hardest = run.exhibits
    assert isinstance(continuations, Listing)
    assert isinstance(hardest, Listing)
    text = (folder / "test.txt").read_text()
    for prompt, goes_on, _ in continuations.rows:
        assert prompt.removeprefix("<s>") + goes_on.removesuffix("</s>") in text
    more = train_run(recipe(folder, compare={"samples": 3}), arm, 0, 4, silent).run
    assert more.exhibits == run.exhibits
    losses = [float(row[-1]) for row in hardest.rows]
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] > run.metrics["nll"]


def test_training_lowers_the_perplexity(folder: Path) -> None:
    longer = recipe(folder, training={"steps": 60, "learning_rate": 1e-2, "eval_every_steps": 60})
    run = train_run(longer, "rdrop", 0, 60, silent).run
    vocabulary = len(set((folder / "train.txt").read_text())) + 4
    assert run.metrics["perplexity"] < vocabulary / 2
    assert run.curves["divergence"].values[0] > 0


# One model on disk


def test_a_saved_model_predicts_from_files_without_any_training_data(folder: Path) -> None:
    first, _ = loaded(folder)
    model = build_model(first, 0)
    first.save(model, folder / "model")
    (folder / "prompts.txt").write_text("the cat\n\n" + "saw a bird " * 9 + "\n")
    (folder / "more.jsonl").write_text('{"text": "the dog"}\n')
    second = LanguageTask(recipe(folder / "elsewhere"))
    restored = second.restore(folder / "model")
    texts = second.read([folder / "prompts.txt", folder / "more.jsonl"])
    assert texts == ["the cat", "saw a bird " * 9, "the dog"]
    answers = list(second.predict(restored, texts, samples=0, seed=0))
    assert [answer["text"] for answer in answers] == texts
    assert [answer["tokens"] for answer in answers] == [7, 99, 7]
    assert all("spread" not in answer for answer in answers)
    ids = [1, *first.tokenizer("the cat")["input_ids"]]
    with torch.no_grad():
        log_p = model.eval()(input_ids=torch.tensor([ids]))["logits"][0].log_softmax(-1)
    nll = -float(log_p[torch.arange(7), torch.tensor(ids[1:])].mean())
    assert answers[0]["perplexity"] == pytest.approx(math.exp(nll), rel=1e-4)
    assert answers == list(second.predict(restored, texts, samples=0, seed=0))
    written = [answer["continuation"] for answer in answers]
    assert written != [answer["continuation"] for answer in second.predict(restored, texts, samples=0, seed=1)]
    how = second.recipe.continuation
    set_seed(0)
    new = continued(model, first.tokenizer, ids, how, context=32)
    assert answers[0]["continuation"] == str(first.tokenizer.decode(new)).removesuffix("</s>")
    with torch.no_grad():
        log_p = model(input_ids=torch.tensor([[*ids, *new]]))["logits"][0].log_softmax(-1)
    chosen = [float(log_p[len(ids) - 1 + i, token]) for i, token in enumerate(new)]
    assert answers[0]["confidence"] == pytest.approx(math.exp(sum(chosen) / len(chosen)), rel=1e-4)


def test_the_end_of_a_continuation_is_judged_and_not_shown(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task, _ = loaded(folder)
    model = build_model(task, 0).eval()
    [a, end] = [task.tokenizer("a")["input_ids"][0], task.tokenizer.eos_token_id]
    monkeypatch.setattr(language_modeling, "continued", lambda *_: [a, end])
    [answer] = task.predict(model, ["the"], samples=0, seed=0)
    ids = [1, *task.tokenizer("the")["input_ids"], a, end]
    with torch.no_grad():
        log_p = model(input_ids=torch.tensor([ids]))["logits"][0].log_softmax(-1)
    assert answer["continuation"] == "a"
    assert answer["confidence"] == pytest.approx(math.exp(float(log_p[3, a] + log_p[4, end]) / 2), rel=1e-4)


def test_monte_carlo_dropout_averages_probabilities_and_tells_their_spread(folder: Path) -> None:
    task, _ = loaded(folder)
    model = build_model(task, 0)
    off = next(iter(task.predict(model, ["the cat"], samples=0, seed=0)))
    averaged, second = task.predict(model, ["the cat", "a dog"], samples=30, seed=0)
    assert averaged["continuation"] == off["continuation"]
    assert second["continuation"] == list(task.predict(model, ["the", "a dog"], samples=0, seed=0))[1]["continuation"]
    assert 0 < averaged["spread"] < averaged["confidence"]
    assert averaged["confidence"] == pytest.approx(off["confidence"], rel=0.1)
    assert averaged["confidence"] != off["confidence"]
    assert averaged["perplexity"] == pytest.approx(off["perplexity"], rel=0.1)


def test_a_trained_model_is_a_pretrained_one_of_another_run(folder: Path) -> None:
    first, _ = loaded(folder)
    first.save(build_model(first, 0), folder / "model")
    task = LanguageTask(recipe(folder, model={"name": str(folder / "model"), "dropout": 0.2}))
    splits = task.load(0)
    assert "tokens of model (a vocabulary of" in splits.description
    assert task.tokenizer.get_vocab() == first.tokenizer.get_vocab()
    run = train_run(task.recipe, "rdrop", 0, 4, silent).run
    assert run.error is None
    assert run.curves["divergence"].values[0] > 0


def test_a_model_is_not_judged_on_tokens_of_another_vocabulary(folder: Path) -> None:
    first, _ = loaded(folder)
    first.save(build_model(first, 0), folder / "model")
    (folder / "train.txt").write_text(sentences(90, 5) + "Ω\n")
    second, _ = loaded(folder)
    learned = second.names
    second.restore(folder / "model")
    assert learned != second.names == first.names


def test_a_folder_without_a_model_is_told(folder: Path) -> None:
    with pytest.raises(UserError, match=r"holds no model: there is no config\.json"):
        LanguageTask(recipe(folder)).restore(folder)


# Built-in recipes


def test_the_built_in_recipe_is_the_default_one() -> None:
    text = built_in_recipes()["language-modeling"]
    assert text.endswith(recipe_text(LanguageRecipe()))
    assert load_recipe("language-modeling") == LanguageRecipe()
    assert task_class("language-modeling") is LanguageTask


def test_the_full_size_recipe_builds_and_runs_a_few_steps(tmp_path: Path) -> None:
    for seed, split in enumerate(["train", "valid", "test"]):
        articles = "".join(f" \n = Title {i} = \n \n {sentences(1, 10 * seed + i)}" for i in range(2))
        (tmp_path / f"wiki.{split}.tokens").write_text(articles)
    full = load_recipe("wikitext-103", [f"folder={tmp_path}"])
    assert isinstance(full, LanguageRecipe)
    assert (full.rdrop.alpha, full.data.block_size, full.data.vocabulary) == (0.5, 512, "word")
    short = ["steps=2", "batch_size=1", "gradient_accumulation_steps=1", "precision=float32", "samples=2"]
    few = load_recipe("wikitext-103", [f"folder={tmp_path}", *short])
    task: Any = task_of(few)
    task.load(0)
    with torch.device("meta"):
        model = task.build_model()
    vocabulary = len(task.tokenizer)
    # Embeddings of tokens and positions; twelve layers of GPT-2; the last norm.
    sizes = (vocabulary + 512) * 768 + 12 * (12 * 768**2 + 13 * 768) + 2 * 768
    assert sum(parameter.numel() for parameter in model.parameters()) == sizes
    run = train_run(few, "rdrop", 0, 2, silent).run
    assert (run.status, run.error, run.optimizer_steps) == ("finished", None, 2)


def real_data(name: str) -> Path:
    roots = [Path(os.environ["RDROP_DATA"])] if "RDROP_DATA" in os.environ else []
    roots.append(Path(__file__).parents[4] / "shared" / "data")
    found = next((root / name for root in roots if (root / name).is_dir()), None)
    if found is None:
        pytest.skip(f"needs the data set {name} in the folder that RDROP_DATA names")
    return found


def test_real_articles_are_told_apart() -> None:
    task = task_of(
        load_recipe(
            "language-modeling",
            [
                f"folder={real_data('wikitext2_small')}",
                "train=train.txt.gz",
                "validation=dev.txt.gz",
                "documents=wikitext",
                "vocabulary=word",
                "vocabulary_size=null",
            ],
        )
    )
    splits = task.load(0)
    assert "193,348 tokens of 54 documents of train.txt.gz for training" in splits.description
    assert "24,298 tokens of 6 documents of dev.txt.gz for validation" in splits.description
    assert "tokens of the validation split" in splits.notes[0]
