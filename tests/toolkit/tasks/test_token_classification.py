from __future__ import annotations

import gzip
import json
import os
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F
from transformers import RobertaConfig, RobertaModel, RobertaTokenizer

from rdrop.errors import UserError
from rdrop.integrations.transformers import RDropTrainer
from rdrop.toolkit.arms import Objective
from rdrop.toolkit.pretrained import quiet_loading
from rdrop.toolkit.summary import Listing
from rdrop.toolkit.task import Splits
from rdrop.toolkit.tasks import task_of
from rdrop.toolkit.tasks.token_classification import TokenRecipe, TokenTask
from rdrop.toolkit.text.vocabulary import train_vocabulary
from rdrop.toolkit.train import build_model, make_trainer, survey, train_run
from tiny_encoder import save_encoder, sentences, write

TAGS = ("B-town", "I-town", "O")


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_encoder(tmp_path_factory.mktemp("encoder"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, count in {"train.jsonl": 48, "dev.jsonl": 12, "test.jsonl": 13}.items():
        write(tmp_path / name, sentences(count))
    return tmp_path


def recipe(folder: Path, encoder: str | None, **sections: dict[str, Any]) -> TokenRecipe:
    """A comparison of six steps."""
    given: dict[str, dict[str, Any]] = {
        "data": {"folder": str(folder), "validation": "dev.jsonl", "test": "test.jsonl", "max_length": 24},
        "model": {"name": encoder, "dropout": 0.1},
        "training": {"epochs": 1, "batch_size": 8, "learning_rate": 0.01, "device": "cpu"},
        "rdrop": {"strategy": "sequential"},
        "compare": {"samples": 2, "seeds": [0]},
    }
    return TokenRecipe.model_validate({name: given[name] | sections.get(name, {}) for name in given})


def loaded(made: TokenRecipe, seed: int = 0) -> tuple[TokenTask, Splits]:
    task = TokenTask(made)
    return task, task.load(seed)


def trainer_of(task: TokenTask, splits: Splits, model: torch.nn.Module, folder: Path) -> RDropTrainer:
    goal = Objective(passes=2, alpha=1.5)
    return make_trainer(task, goal, 0, model, splits, steps=1, nominal=1, folder=str(folder))


def conll(rows: Sequence[dict[str, list[str]]], separator: str = " ") -> str:
    """Two columns, with a line that begins a document."""
    told = ["-DOCSTART- O\n\n"]
    for row in rows:
        pairs = zip(row["tokens"], row["tags"], strict=True)
        told.append("".join(f"{word}{separator}{tag}\n" for word, tag in pairs) + "\n")
    return "".join(told)


def test_the_first_token_of_a_word_has_its_tag_and_nothing_else_counts(folder: Path, encoder: str) -> None:
    task, splits = loaded(recipe(folder, encoder))
    assert task.names == TAGS
    assert splits.description == (
        "Sentences with one of 3 tags for each word: 48 of the 48 in train.jsonl for training, 12 for validation "
        "(dev.jsonl), 13 for testing (test.jsonl)."
    )
    row = splits.train[2]
    tokens = task.tokenizer.convert_ids_to_tokens(row["input_ids"])
    assert tokens == ["[CLS]", "we", "saw", "film", "##s", "in", "paris", "[SEP]"]
    assert row["labels"] == [-100, 2, 2, 2, -100, 2, 0, -100]
    assert row["words"] == ["We", "saw", "films", "in", "Paris"]
    batch = task.collate([splits.train[2], splits.train[3]])
    assert batch["labels"].tolist() == [
        [-100, 2, 2, 2, -100, 2, 0, -100, -100, -100],
        [-100, 2, 2, 2, 0, 1, 2, 0, 2, -100],
    ]
    assert batch["attention_mask"].tolist()[0] == [1] * 8 + [0] * 2


@pytest.mark.parametrize("suffix", [".jsonl.gz", ".parquet", ".conll", ".conll.gz", ".bio"])
def test_all_formats_say_the_same(folder: Path, encoder: str, suffix: str) -> None:
    for part, count in {"train": 48, "dev": 12, "test": 13}.items():
        path = folder / f"{part}{suffix}"
        if ".conll" in suffix or suffix == ".bio":
            content = conll(sentences(count), "\t" if suffix == ".bio" else " ").encode()
            path.write_bytes(gzip.compress(content) if suffix.endswith(".gz") else content)
        else:
            write(path, sentences(count))
    files = {"train": f"train{suffix}", "validation": f"dev{suffix}", "test": f"test{suffix}"}
    _, expected = loaded(recipe(folder, encoder))
    _, found = loaded(recipe(folder, encoder, data=files))
    for part in ("train", "validation", "test"):
        assert getattr(found, part).to_dict() == getattr(expected, part).to_dict()


def test_numbers_stand_for_the_tags_of_a_file(folder: Path, encoder: str) -> None:
    (folder / "tags.txt").write_text("O\nB-town\nI-town\nB-river\n")
    rows = [{**row, "tags": [{"O": 0, "B-town": 1, "I-town": 2}[tag] for tag in row["tags"]]} for row in sentences(12)]
    write(folder / "train.jsonl", rows)
    task, splits = loaded(recipe(folder, encoder, data={"labels": "tags.txt"}))
    assert task.names == ("O", "B-town", "I-town", "B-river")
    assert splits.train[2]["labels"] == [-100, 0, 0, 0, -100, 0, 1, -100]
    assert splits.notes == ("No training example has 1 of the 4 labels: B-river.",)


def test_a_long_sentence_stands_in_several_rows_and_loses_no_word(folder: Path, encoder: str) -> None:
    long = {"tokens": ["films", "in", "Paris"] * 7, "tags": ["O", "O", "B-town"] * 7}
    write(folder / "test.jsonl", [*sentences(2), long])
    task, splits = loaded(recipe(folder, encoder, data={"max_length": 12}))
    rows = splits.judged("test")
    parts = [row for row in rows if row["sentence"] == 2]
    assert len(parts) == 3
    assert [word for part in parts for word in part["words"]] == long["tokens"]
    labels = [label for part in parts for label in part["labels"] if label != -100]
    assert [task.names[label] for label in labels] == long["tags"]
    # The cut goes through the word film ##s: its second half has no label of its own.
    assert task.tokenizer.convert_ids_to_tokens(parts[1]["input_ids"])[1] == "in"
    assert max(len(row["input_ids"]) for row in rows) == 12
    assert splits.notes == (
        "1 of 3 examples of the test split have more than 12 tokens (data.max_length) and stand in several rows: an "
        "entity across a cut counts as two.",
    )
    model = build_model(task, 0)
    (answer,) = list(task.predict(model, task.read([write(folder / "new.jsonl", [long])]), samples=0, seed=0))
    assert answer["tokens"] == long["tokens"]
    assert len(answer["tags"]) == len(answer["confidences"]) == 21


def test_a_word_that_is_cut_in_two_is_tagged_by_its_first_half(folder: Path, encoder: str) -> None:
    long = {"tokens": ["in", *["films"] * 6], "tags": ["O"] * 7}
    write(folder / "test.jsonl", [long])
    task, splits = loaded(recipe(folder, encoder, data={"max_length": 8}))
    tokens = [task.tokenizer.convert_ids_to_tokens(row["input_ids"]) for row in splits.judged("test")]
    assert tokens[1][1] == "##s"
    assert splits.judged("test")[1]["labels"][1] == -100
    assert sum(label != -100 for row in splits.judged("test") for label in row["labels"]) == 7


def test_words_that_the_tokenizer_drops_are_tagged_all_the_same(folder: Path, encoder: str) -> None:
    joiner = {"tokens": ["in", "\u200d", "Paris"], "tags": ["O", "O", "B-town"]}
    write(folder / "test.jsonl", [joiner])
    task, splits = loaded(recipe(folder, encoder))
    row = splits.judged("test")[0]
    assert task.tokenizer.convert_ids_to_tokens(row["input_ids"]) == ["[CLS]", "in", "[UNK]", "paris", "[SEP]"]
    assert row["labels"] == [-100, 2, 2, 0, -100]
    assert row["words"] == joiner["tokens"]


def test_byte_level_vocabularies_are_told_of_the_space_before_a_word(folder: Path, tmp_path: Path) -> None:
    name = str(tmp_path / "roberta")
    vocabulary = json.loads(train_vocabulary(["we saw films in"] * 9, "bpe", 320).backend_tokenizer.to_str())["model"]
    merges: Any = [tuple(merge) for merge in vocabulary["merges"]]
    sizes: dict[str, Any] = {
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 16,
    }
    with quiet_loading():
        RobertaTokenizer(vocab=vocabulary["vocab"], merges=merges).save_pretrained(name)
        RobertaModel(RobertaConfig(vocab_size=320, max_position_embeddings=64, **sizes)).save_pretrained(name)
    task, splits = loaded(recipe(folder, name, data={"max_length": 60}))
    row = splits.train[2]
    tokens = task.tokenizer.convert_ids_to_tokens(row["input_ids"])
    assert tokens[:9] == ["<s>", "Ġ", "W", "e", "Ġsaw", "Ġfilms", "Ġin", "Ġ", "P"]
    assert (
        [position for position, label in enumerate(row["labels"]) if label != -100]
        == row["positions"]
        == [1, 4, 5, 6, 7]
    )
    assert train_run(recipe(folder, name), "rdrop", 0, 6, lambda _: None).run.status == "finished"


def test_divergence_and_task_loss_are_over_the_words_alone(folder: Path, encoder: str) -> None:
    task, splits = loaded(recipe(folder, encoder))
    model = build_model(task, 0).train()
    trainer = trainer_of(task, splits, model, folder)
    rows = [splits.train[i] for i in range(7)]
    # Two micro-batches of different sizes and lengths, which are one step.
    batches, count = trainer.get_batch_samples(
        iter([task.collate(rows[:4]), task.collate(rows[4:])]), 2, torch.device("cpu")
    )
    torch.manual_seed(3)
    loss = torch.stack([trainer.compute_loss(model, batch, num_items_in_batch=count) for batch in batches]).sum()
    loss.backward()  # type: ignore[no-untyped-call]
    found = [weight.grad.clone() for weight in model.parameters() if weight.grad is not None]
    model.zero_grad()
    torch.manual_seed(3)
    total, words = torch.zeros(()), 0
    for batch in batches:
        inputs = {name: column for name, column in batch.items() if name != "labels"}
        passes = [model(**inputs).logits.log_softmax(-1) for _ in range(2)]
        for row, labels in enumerate(batch["labels"].tolist()):
            for position, label in enumerate(labels):
                if label != -100:
                    p, q = passes[0][row, position], passes[1][row, position]
                    distance = ((p.exp() - q.exp()) * (p - q)).sum() / 2
                    total = total - (p[label] + q[label]) / 2 + 1.5 * distance
                    words += 1
    assert words == sum(len(sentence["tokens"]) for sentence in sentences(7))
    expected = total / words
    expected.backward()  # type: ignore[no-untyped-call]
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    gradients = [weight.grad for weight in model.parameters() if weight.grad is not None]
    assert len(found) == len(gradients) > 10
    for ours, plain in zip(found, gradients, strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-4, atol=1e-6)


def test_metrics_are_those_of_each_sentence_alone(folder: Path, encoder: str) -> None:
    task, splits = loaded(recipe(folder, encoder))
    model: Any = build_model(task, 0).eval()
    with torch.no_grad():  # so that it sees a town everywhere but at the end
        model.classifier.bias.copy_(torch.tensor([0.2, 0.0, 0.0]))
    found = task.evaluate(trainer_of(task, splits, model, folder), splits.test, seed=0, exhibits=True)
    assert found.metrics.keys() == {metric.name for metric in task.metrics}
    nll, right, predicted, words = 0.0, [], [], 0
    for row in splits.judged("test"):
        batch = task.collate([row])
        with torch.no_grad():
            logits = model(**{name: column for name, column in batch.items() if name != "labels"}).logits[0]
        labels = batch["labels"][0]
        nll += float(F.cross_entropy(logits, labels, reduction="sum"))
        counted = labels != -100
        words += int(counted.sum())
        right.append([TAGS[i] for i in labels[counted].tolist()])
        predicted.append([TAGS[i] for i in logits[counted].argmax(-1).tolist()])
    assert found.metrics["nll"] == pytest.approx(nll / words, rel=1e-5)

    def towns(tags: list[str]) -> set[tuple[int, int]]:
        """First and last word of each entity."""
        starts = [
            i for i, tag in enumerate(tags) if tag == "B-town" or (tag == "I-town" and (i == 0 or tags[i - 1] == "O"))
        ]
        return {(i, next((j for j in range(i + 1, len(tags)) if tags[j] != "I-town"), len(tags)) - 1) for i in starts}

    hits = sum(len(towns(a) & towns(b)) for a, b in zip(right, predicted, strict=True))
    assert found.metrics["precision"] == pytest.approx(hits / sum(len(towns(tags)) for tags in predicted))
    assert found.metrics["recall"] == pytest.approx(hits / sum(len(towns(tags)) for tags in right))
    table, wrong = found.exhibits
    assert isinstance(table, Listing)
    assert isinstance(wrong, Listing)
    assert table.rows[0][:2] == ["town", str(sum(len(towns(tags)) for tags in right))]
    assert len(wrong.rows) == sum(a != b for a, b in zip(right, predicted, strict=True))
    assert {row[1] for row in wrong.rows} <= {"Paris (town)", "New York (town), Rome (town)"}


@pytest.mark.parametrize("pretrained", [True, False])
def test_a_model_is_saved_and_restored_and_predicts(folder: Path, encoder: str, pretrained: bool) -> None:
    sizes = {"vocabulary_size": 300, "width": 16, "heads": 2, "layers": 1, "dropout": 0.4}
    made = recipe(folder, encoder if pretrained else None, model=sizes)
    task, splits = loaded(made)
    model = build_model(task, 0)
    task.save(model, folder / "saved")
    again: Any = task_of(made)
    restored = again.restore(folder / "saved")
    (folder / "lines.txt").write_text("We saw films\n")
    rows = again.read([folder / "test.jsonl", folder / "lines.txt"])
    answers = list(again.predict(restored, rows, samples=0, seed=0))
    assert [answer["tokens"] for answer in answers] == [row["tokens"] for row in sentences(13)] + [
        ["We", "saw", "films"]
    ]
    assert json.loads(json.dumps(answers)) == answers
    prediction: Any = trainer_of(task, splits, model, folder).predict(splits.judged("test"))
    for row, answer in enumerate(answers[:13]):
        counted = prediction.label_ids[row] != -100
        assert answer["tags"] == [TAGS[i] for i in prediction.predictions[0][row][counted]]
        assert answer["confidence"] == min(answer["confidences"])
        assert 1 / 3 < answer["confidence"] < 1
    sampled, repeated, others = (list(again.predict(restored, rows, samples=4, seed=seed)) for seed in (1, 1, 2))
    assert sampled == repeated != others
    assert all(answer["spread"] > 0 for answer in sampled)


def test_entities_are_told_with_their_words(folder: Path, encoder: str) -> None:
    made = recipe(folder, encoder, training={"epochs": 12, "learning_rate": 0.02, "eval_every_epochs": 12})
    task, splits = loaded(made)
    model = build_model(task, 0)
    goal = Objective(passes=2, alpha=1.0)
    trainer = make_trainer(task, goal, 0, model, splits, steps=72, nominal=72, folder=str(folder))
    trainer.train()
    (folder / "new.txt").write_text("I was in New York and Rome .\nI was in films\n")
    first, second = task.predict(model, task.read([folder / "new.txt"]), samples=0, seed=0)
    assert first["entities"] == [{"type": "town", "text": "New York"}, {"type": "town", "text": "Rome"}]
    assert second["entities"] == []


def test_runs_finish_and_repeat_bit_for_bit(folder: Path, encoder: str) -> None:
    training = {"eval_every_steps": 3, "label_smoothing": 0.1}
    made = recipe(folder, encoder, data={"test": None}, training=training)
    nominal = survey(made).nominal_steps
    first, second = (train_run(made, "rdrop", 0, nominal, lambda _: None) for _ in range(2))
    assert (first.run.status, first.run.error, first.run.optimizer_steps) == ("finished", None, 6)
    assert first.run == second.run
    assert first.run.curves["eval_f1"].steps == [3, 6]
    assert first.run.curves["eval_nll"].values[-1] == first.run.metrics["nll"]


def test_a_streamed_split_is_read_in_every_epoch(folder: Path, encoder: str) -> None:
    made = recipe(folder, encoder, data={"streaming": True, "shuffle_buffer": 16}, training={"steps": 9})
    _, splits = loaded(made)
    _, kept = loaded(recipe(folder, encoder))

    def by_words(rows: Any) -> list[tuple[str, list[int]]]:
        return sorted((" ".join(row["words"]), row["labels"]) for row in rows)

    streamed = list(islice(splits.train, len(kept.train)))
    assert by_words(streamed) == by_words(kept.train)
    assert [row["words"] for row in streamed] != [row["words"] for row in kept.train]
    run = train_run(made, "rdrop", 0, survey(made).nominal_steps, lambda _: None).run
    assert (run.status, run.error, run.optimizer_steps) == ("finished", None, 9)


def spoil(name: str, text: str) -> Callable[[Path], object]:
    """A folder in which one file is another."""
    return lambda folder: (folder / name).write_text(text)


def line(**values: Any) -> str:
    return json.dumps(values) + "\n"


@pytest.mark.parametrize(
    ("spoiled", "data", "told"),
    [
        (
            spoil("dev.jsonl", line(tokens=["a", "b"], tags=["O"])),
            {},
            "dev.jsonl:1: tags: got 1 tag for 2 words, expected one for each. Repair the row, or set data.on_bad_row",
        ),
        (
            spoil("dev.jsonl", line(tokens=["a"], tags=["O"]) + line(tokens=["b"], tags=["B-twon"])),
            {},
            "dev.jsonl:2: tags: got the label 'B-twon', which no row of train.jsonl has; expected one of "
            "B-town, I-town, O (did you mean 'B-town'?)",
        ),
        (
            spoil("dev.jsonl", line(tokens="a b", tags=["O"])),
            {},
            "tokens: got the text 'a b', expected a list of words",
        ),
        (
            spoil("dev.jsonl", line(tokens=[], tags=[])),
            {},
            "dev.jsonl:1: tokens: got the list [], expected a list of words",
        ),
        (spoil("dev.jsonl", line(tokens=["a", None], tags=["O", "O"])), {}, "tokens[1]: got null, expected text"),
        (spoil("dev.jsonl", line(tokens=["a", " "], tags=["O", "O"])), {}, "tokens[1]: got an empty text, expected"),
        (spoil("dev.jsonl", line(tokens=["a"], tags=[0.5])), {}, "tags[0]: got 0.5, expected a label"),
        (
            spoil("train.jsonl", line(tokens=["a"], tags=["O"])),
            {},
            "train.jsonl: every tag is O (column tags); expected at least one entity",
        ),
        (
            spoil("train.jsonl", line(tokens=["a", "b"], tags=["NOUN", "VERB"])),
            {},
            "train.jsonl: got the tags 'NOUN', 'VERB'; expected O, or B-",
        ),
        (
            spoil("train.jsonl", line(tokens=["a", "b"], tags=[0, 1])),
            {},
            "Where tags are numbers, data.labels names the file of names.",
        ),
        (
            spoil("dev.conll", "a O\nb\n\n"),
            {"validation": "dev.conll"},
            "dev.conll:1: line 2 has a single field, expected a word and its tag, with a space between",
        ),
        (
            spoil("dev.conll", "\n-DOCSTART- O\n"),
            {"validation": "dev.conll"},
            "dev.conll has no sentences; expected at",
        ),
        (
            spoil("dev.conll", "a\n\nb\n"),
            {"validation": "dev.conll", "on_bad_row": "skip"},
            "no sentence of dev.conll can be used: 2 rows of dev.conll were skipped",
        ),
        (
            spoil("dev.csv", "tokens,tags\na,O\n"),
            {"validation": "dev.csv"},
            "dev.csv: a .csv file does not hold lists of words; expected .jsonl, .ndjson, .conll, .bio, .iob",
        ),
        (spoil("x", ""), {"tags": "ner"}, "train.jsonl:1: there is no column 'ner', only 'tokens', 'tags'"),
    ],
)
def test_data_that_cannot_be_used_are_explained(
    folder: Path, encoder: str, spoiled: Callable[[Path], object], data: dict[str, Any], told: str
) -> None:
    spoiled(folder)
    with pytest.raises(UserError) as caught:
        survey(recipe(folder, encoder, data=data))
    assert told in str(caught.value).replace(f"{folder}/", "")


def test_bad_sentences_are_skipped_and_counted(folder: Path, encoder: str) -> None:
    (folder / "train.conll").write_text(conll(sentences(9)) + "alone\n")
    spoil("dev.jsonl", line(tokens=["a"], tags=["O"]) + line(tokens=["b"], tags=[]))(folder)
    _, splits = loaded(recipe(folder, encoder, data={"train": "train.conll", "on_bad_row": "skip"}))
    assert (len(splits.train), len(splits.watched())) == (9, 1)
    assert [note.partition("(")[0].replace(f"{folder}/", "") for note in splits.notes] == [
        "1 row of train.conll was skipped ",
        "1 row of dev.jsonl was skipped ",
    ]


def test_a_model_of_other_tags_is_not_evaluated(folder: Path, encoder: str) -> None:
    task, _ = loaded(recipe(folder, encoder))
    task.save(build_model(task, 0), folder / "saved")
    (folder / "tags.txt").write_text("O\nB-town\nI-town\n")
    other, _ = loaded(recipe(folder, encoder, data={"labels": "tags.txt"}))
    with pytest.raises(UserError, match=r"saved: the labels of the model and of the training split differ"):
        other.restore(folder / "saved")


def test_real_data_load(encoder: str) -> None:
    root = Path(os.environ.get("RDROP_DATA", Path(__file__).parents[4] / "shared" / "data"))
    if not (root / "wnut17").is_dir():
        pytest.skip(f"wnut17 is not in {root}; set RDROP_DATA to the folder of the data sets")
    names = {part: f"{part}.jsonl.gz" for part in ("train", "dev", "test")}
    data = {"train": names["train"], "validation": names["dev"], "test": names["test"], "max_length": 64}
    task, splits = loaded(recipe(root / "wnut17", encoder, data=data))
    assert len(task.names) == 13
    counted = [
        sum(label != -100 for row in rows["labels"] for label in row) for rows in (splits.train, splits.judged("test"))
    ]
    assert counted == [62730, 23394]
