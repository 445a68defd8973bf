from __future__ import annotations

import gzip
import json
import os
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import BertModel

from rdrop.errors import RDropWarning, UserError
from rdrop.integrations.transformers import RDropTrainer
from rdrop.toolkit.arms import Objective
from rdrop.toolkit.pretrained import quiet_loading
from rdrop.toolkit.recipe_file import load_recipe
from rdrop.toolkit.summary import Confusion, Listing
from rdrop.toolkit.task import Splits
from rdrop.toolkit.tasks import task_of
from rdrop.toolkit.tasks.text_classification import TextRecipe, TextTask
from rdrop.toolkit.train import build_model, make_trainer, survey, train_run
from tiny_encoder import opinions, save_encoder, write

ANSWERS = {
    "classification": {"label": "label", "answer": "classification"},
    "regression": {"label": "score", "answer": "regression"},
    "multi-label": {"label": "things", "answer": "multi-label"},
}


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_encoder(tmp_path_factory.mktemp("encoder"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, count in {"train.csv": 48, "dev.csv": 12, "test.csv": 13}.items():
        write(tmp_path / name, opinions(count))
    return tmp_path


def recipe(folder: Path, encoder: str | None, **sections: dict[str, Any]) -> TextRecipe:
    """A comparison of six steps."""
    given: dict[str, dict[str, Any]] = {
        "data": {"folder": str(folder), "validation": "dev.csv", "test": "test.csv", "max_length": 24},
        "model": {"name": encoder, "dropout": 0.1},
        "training": {"epochs": 1, "batch_size": 8, "learning_rate": 0.01, "device": "cpu"},
        "rdrop": {"strategy": "sequential"},
        "compare": {"samples": 2, "seeds": [0]},
    }
    return TextRecipe.model_validate({name: given.get(name, {}) | sections.get(name, {}) for name in given})


def loaded(made: TextRecipe, seed: int = 0) -> tuple[TextTask, Splits]:
    task = TextTask(made)
    return task, task.load(seed)


def trainer_of(
    task: TextTask,
    splits: Splits,
    model: torch.nn.Module,
    folder: Path,
    alpha: float = 1.5,
    steps: int = 1,
    **saving: Any,
) -> RDropTrainer:
    goal = Objective(passes=2, alpha=alpha)
    return make_trainer(task, goal, 0, model, splits, steps=steps, nominal=steps, folder=str(folder), **saving)


def message(made: TextRecipe) -> str:
    """What a user is told about the data, without the folder."""
    with pytest.raises(UserError) as caught:
        survey(made)
    return str(caught.value).replace(f"{made.data.folder}/", "")


@pytest.mark.parametrize("suffix", [".tsv", ".jsonl", ".parquet", ".csv.gz", ".tsv.gz", ".jsonl.gz"])
@pytest.mark.parametrize("answer", ["classification", "multi-label"])
def test_all_formats_say_the_same(folder: Path, encoder: str, suffix: str, answer: str) -> None:
    names = {part: f"{part}{suffix}" for part in ("train", "dev", "test")}
    for part, count in {"train": 48, "dev": 12, "test": 13}.items():
        write(folder / names[part], opinions(count))
    files = {"train": names["train"], "validation": names["dev"], "test": names["test"]}
    task, expected = loaded(recipe(folder, encoder, data=ANSWERS[answer] | {"pair": "other"}))
    other, found = loaded(recipe(folder, encoder, data=ANSWERS[answer] | {"pair": "other"} | files))
    assert task.names == other.names
    for before, after in zip(
        (expected.train, expected.validation, expected.test), (found.train, found.validation, found.test), strict=True
    ):
        assert after.to_dict() == before.to_dict()


def test_texts_and_pairs_become_what_the_tokenizer_makes_of_them(folder: Path, encoder: str) -> None:
    task, splits = loaded(recipe(folder, encoder, data={"pair": "other"}))
    row, raw = splits.train[5], opinions(48)[5]
    alone = task.tokenizer(raw["text"], raw["other"])
    assert row["texts"] == [raw["text"], raw["other"]]
    assert {name: row[name] for name in alone} == dict(alone)
    assert 1 in row["token_type_ids"]
    batch = task.collate([splits.train[i] for i in (0, 1, 5)])
    longest = max(len(splits.train[i]["input_ids"]) for i in (0, 1, 5))
    assert batch["input_ids"].shape == batch["attention_mask"].shape == (3, longest)
    assert batch["labels"].tolist() == [0, 1, 1]
    _, single = loaded(recipe(folder, encoder))
    assert 1 not in single.train[5]["token_type_ids"]


def test_labels_are_learned_and_sorted_as_numbers_where_they_are_numbers(folder: Path, encoder: str) -> None:
    rows = [{**row, "label": [10, 9, -1][i % 3]} for i, row in enumerate(opinions(48))]
    for name in ("train.jsonl", "dev.csv", "test.csv"):
        write(folder / name, rows)
    task, splits = loaded(recipe(folder, encoder, data={"train": "train.jsonl"}))
    assert task.names == ("-1", "9", "10")
    assert splits.train["labels"][:4] == [2, 1, 0, 2]
    assert splits.test is not None
    assert splits.test["labels"][:4] == [2, 1, 0, 2]


def test_a_file_of_names_gives_their_order_and_numbers_stand_for_names(folder: Path, encoder: str) -> None:
    (folder / "names.txt").write_text("plot\nfilm\nmusic\n")
    write(folder / "dev.jsonl", [{"text": "A film.", "things": [1, "plot"]}, {"text": "A plot.", "things": "0"}])
    task, splits = loaded(
        recipe(folder, encoder, data=ANSWERS["multi-label"] | {"labels": "names.txt", "validation": "dev.jsonl"})
    )
    assert task.names == ("plot", "film", "music")
    assert splits.train["labels"][:3] == [[0, 0, 0], [0, 1, 0], [1, 1, 0]]
    assert splits.validation is not None
    assert splits.validation["labels"][:2] == [[1, 1, 0], [1, 0, 0]]
    assert splits.notes == ("No training example has 1 of the 3 labels: music.",)


def test_the_draws_are_by_class_and_by_seed(folder: Path, encoder: str) -> None:
    few = {"train_size": 12, "validation": None, "validation_fraction": 0.25}
    _, splits = loaded(recipe(folder, encoder, data=few))
    assert splits.validation is not None
    assert (sum(splits.train["labels"]), len(splits.train)) == (6, 12)
    assert (sum(splits.validation["labels"]), len(splits.validation)) == (6, 12)
    assert splits.description == (
        "Texts with one of 2 classes: 12 of the 48 in train.csv for training, drawn by class anew for each seed, 12 "
        "for validation (held out of train.csv), 13 for testing (test.csv)."
    )
    fixed = {name: loaded(recipe(folder, encoder, data=few | {"split_seed": 7}), name)[1] for name in (1, 2)}
    assert fixed[1].train.to_dict() == fixed[2].train.to_dict()
    assert "once, with seed 7" in fixed[1].description
    _, others = loaded(recipe(folder, encoder, data=few), seed=1)
    assert others.train.to_dict() != splits.train.to_dict()
    _, numbers = loaded(recipe(folder, encoder, data=few | ANSWERS["regression"]))
    assert "drawn anew" in numbers.description


def test_texts_that_are_too_long_are_cut_and_counted(folder: Path, encoder: str) -> None:
    _, splits = loaded(recipe(folder, encoder, data={"max_length": 8}))
    lengths = [len(ids) for ids in splits.train["input_ids"]]
    assert max(lengths) == 8
    # [CLS] this film is (very){0..2} WORD . [SEP]: 7, 8 or 9 tokens
    assert splits.notes == tuple(
        f"{cut} of {count} examples of the {part} split have more than 8 tokens (data.max_length) and were cut."
        for part, cut, count in (("train", 16, 48), ("validation", 4, 12), ("test", 4, 13))
    )


def by_hand(answer: str, passes: list[Tensor], labels: Tensor, alpha: float) -> tuple[Tensor, int]:
    """The objective summed over what counts, in plain formulas, and how many those are."""
    z, w = passes
    if answer == "classification":
        p, q = z.log_softmax(-1), w.log_softmax(-1)
        task = -(p + q).gather(-1, labels[:, None])[:, 0] / 2
        distance = ((p.exp() * (p - q)).sum(-1) + (q.exp() * (q - p)).sum(-1)) / 2
    elif answer == "regression":
        task, distance = ((z - labels) ** 2 + (w - labels) ** 2) / 2, (z - w) ** 2
    else:
        task = F.binary_cross_entropy_with_logits(z, labels, reduction="none") / 2
        task = task + F.binary_cross_entropy_with_logits(w, labels, reduction="none") / 2
        p, q = z.sigmoid(), w.sigmoid()
        distance = (p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()) / 2
        distance = distance + (q * (q / p).log() + (1 - q) * ((1 - q) / (1 - p)).log()) / 2
    return (task + alpha * distance).sum(), labels.numel()


@pytest.mark.parametrize("answer", list(ANSWERS))
def test_the_objective_of_a_step_is_that_of_a_plain_program(folder: Path, encoder: str, answer: str) -> None:
    task, splits = loaded(recipe(folder, encoder, data=ANSWERS[answer]))
    model = build_model(task, 0).train()
    trainer = trainer_of(task, splits, model, folder)
    rows = [splits.train[i] for i in range(7)]
    # Two micro-batches of different sizes, which are one step.
    batches, count = trainer.get_batch_samples(
        iter([task.collate(rows[:4]), task.collate(rows[4:])]), 2, torch.device("cpu")
    )
    torch.manual_seed(3)
    loss = torch.stack([trainer.compute_loss(model, batch, num_items_in_batch=count) for batch in batches]).sum()
    loss.backward()  # type: ignore[no-untyped-call]
    found = [weight.grad.clone() for weight in model.parameters() if weight.grad is not None]
    model.zero_grad()
    torch.manual_seed(3)
    parts = []
    for batch in batches:
        inputs = {name: column for name, column in batch.items() if name != "labels"}
        parts.append(by_hand(answer, [model(**inputs).logits, model(**inputs).logits], batch["labels"], alpha=1.5))
    expected = torch.stack([part for part, _ in parts]).sum() / sum(number for _, number in parts)
    expected.backward()  # type: ignore[no-untyped-call]
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    gradients = [weight.grad for weight in model.parameters() if weight.grad is not None]
    assert len(found) == len(gradients) > 10
    for ours, plain in zip(found, gradients, strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("answer", list(ANSWERS))
def test_metrics_are_those_of_each_text_alone(folder: Path, encoder: str, answer: str) -> None:
    task, splits = loaded(recipe(folder, encoder, data=ANSWERS[answer]))
    model = build_model(task, 0).eval()
    found = task.evaluate(trainer_of(task, splits, model, folder), splits.test, seed=0, exhibits=True)
    with torch.no_grad():
        batches = [task.collate([row]) for row in splits.judged("test")]
        logits = torch.cat([model(**{k: v for k, v in batch.items() if k != "labels"}).logits for batch in batches])
    labels = torch.cat([batch["labels"] for batch in batches])
    assert {metric.name for metric in task.metrics} == found.metrics.keys()
    if answer == "classification":
        assert found.metrics["accuracy"] == pytest.approx(float((logits.argmax(-1) == labels).float().mean()))
        assert found.metrics["nll"] == pytest.approx(float(F.cross_entropy(logits, labels)), rel=1e-5)
        assert sum(part.count for part in found.reliability) == 13
        matrix, listing = found.exhibits
        assert isinstance(matrix, Confusion)
        assert (matrix.labels, sum(map(sum, matrix.counts))) == (["no", "yes"], 13)
        assert isinstance(listing, Listing)
        assert len(listing.rows) == int((logits.argmax(-1) != labels).sum()) > 0
    elif answer == "regression":
        assert found.metrics["mse"] == pytest.approx(float(F.mse_loss(logits, labels)), rel=1e-5)
        pearson = np.corrcoef(logits[:, 0].numpy(), labels[:, 0].numpy())[0, 1]
        assert found.metrics["pearson"] == pytest.approx(pearson, rel=1e-4)
        (listing,) = found.exhibits
        assert isinstance(listing, Listing)
        worst = int((logits - labels).abs().argmax())
        assert listing.rows[0][0] == opinions(13)[worst]["text"]
    else:
        assert found.metrics["nll"] == pytest.approx(
            float(F.binary_cross_entropy_with_logits(logits, labels)), rel=1e-5
        )
        (listing,) = found.exhibits
        assert isinstance(listing, Listing)
        assert [row[:2] for row in listing.rows] == [["film", "8"], ["plot", "4"]]


def test_the_main_metric_is_the_chosen_one(folder: Path, encoder: str) -> None:
    made = recipe(folder, encoder, data={"metric": "matthews"})
    assert [metric.name for metric in survey(made).metrics][:3] == ["matthews", "nll", "accuracy"]
    names = [metric.name for metric in survey(recipe(folder, encoder, data=ANSWERS["regression"])).metrics]
    assert names == ["pearson", "mse", "spearman"]


@pytest.mark.parametrize("answer", list(ANSWERS))
@pytest.mark.parametrize("pretrained", [True, False])
def test_a_model_is_saved_and_restored_and_predicts(folder: Path, encoder: str, answer: str, pretrained: bool) -> None:
    made = recipe(
        folder,
        encoder if pretrained else None,
        data=ANSWERS[answer] | {"pair": "other"},
        model={"vocabulary_size": 300, "width": 16, "heads": 2, "layers": 1, "dropout": 0.4},
    )
    task, splits = loaded(made)
    model = build_model(task, 0)
    task.save(model, folder / "saved")
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= {
        path.name for path in (folder / "saved").iterdir()
    }
    again: Any = task_of(made)
    restored = again.restore(folder / "saved")
    rows = again.read([folder / "test.csv", write(folder / "more.jsonl", opinions(3))])
    answers = list(again.predict(restored, rows, samples=0, seed=0))
    assert len(answers) == 16
    assert json.loads(json.dumps(answers)) == answers
    assert [(said["text"], said["pair"]) for said in answers[:2]] == [
        (row["text"], row["other"]) for row in opinions(2)
    ]
    logits = trainer_of(task, splits, model, folder).predict(splits.judged("test")).predictions
    for said, expected in zip(answers, torch.tensor(logits), strict=False):
        if answer == "classification":
            assert list(said["probabilities"].values()) == pytest.approx(expected.softmax(-1).tolist(), rel=1e-4)
            assert said["label"] == task.names[int(expected.argmax())]
            assert said["confidence"] == max(said["probabilities"].values())
        elif answer == "regression":
            assert said["value"] == pytest.approx(float(expected[0]), rel=1e-4)
        else:
            likely = dict(zip(task.names, expected.sigmoid().tolist(), strict=True))
            assert said["labels"] == [name for name, p in likely.items() if p > 0.5]
            assert said["confidence"] == pytest.approx(min(max(p, 1 - p) for p in likely.values()), rel=1e-4)
    sampled, repeated, others = (list(again.predict(restored, rows, samples=4, seed=seed)) for seed in (1, 1, 2))
    assert sampled == repeated != others
    assert all(said["spread"] > 0 for said in sampled)


def test_lines_of_text_are_predicted_on(folder: Path, encoder: str) -> None:
    made = recipe(folder, encoder)
    task, _ = loaded(made)
    model = build_model(task, 0)
    (folder / "new.txt").write_text("This film is good.\r\nThis film is bad.\n")
    (folder / "more.txt.gz").write_bytes(gzip.compress(b"This film is dull."))
    rows = task.read([folder / "new.txt", folder / "more.txt.gz"])
    assert rows["texts"][:] == [["This film is good."], ["This film is bad."], ["This film is dull."]]
    assert len(list(task.predict(model, rows, samples=0, seed=0))) == 3
    pairs, _ = loaded(recipe(folder, encoder, data={"pair": "other"}))
    with pytest.raises(UserError, match=r"new.txt: a line holds one text, and the model compares two; put them into"):
        pairs.read([folder / "new.txt"])
    (folder / "gaps.txt").write_text("Good.\n\nBad.\n")
    with pytest.raises(UserError, match=r"gaps.txt:2: text: got an empty text"):
        task.read([folder / "gaps.txt"])
    skipping, _ = loaded(recipe(folder, encoder, data={"on_bad_row": "skip"}))
    with pytest.warns(RDropWarning, match=r"1 row of .*gaps.txt was skipped .* line 2"):
        assert len(skipping.read([folder / "gaps.txt"])) == 2
    (folder / "empty.txt").write_text("")
    with pytest.raises(UserError, match=r"there is nothing to predict in .*empty.txt"):
        task.read([folder / "empty.txt"])


def test_a_model_for_other_data_is_not_evaluated(folder: Path, encoder: str) -> None:
    task, _ = loaded(recipe(folder, encoder))
    task.save(build_model(task, 0), folder / "saved")
    with pytest.raises(
        UserError, match=r"problem_type is single_label_classification, but data.answer needs regression"
    ):
        TextTask(recipe(folder, encoder, data=ANSWERS["regression"])).restore(folder / "saved")
    with pytest.raises(UserError, match=r"encoder-of-none holds no model: there is no config.json"):
        task.restore(folder / "encoder-of-none")
    write(folder / "train.csv", [{**row, "label": f"{row['label']}!"} for row in opinions(48)])
    for name in ("dev.csv", "test.csv"):
        write(folder / name, [{**row, "label": f"{row['label']}!"} for row in opinions(12)])
    other, _ = loaded(recipe(folder, encoder))
    with pytest.raises(UserError, match=r"the labels of the model and of the training split differ"):
        other.restore(folder / "saved")


@pytest.mark.parametrize("answer", list(ANSWERS))
def test_runs_finish_and_repeat_bit_for_bit(folder: Path, encoder: str, answer: str) -> None:
    made = recipe(folder, encoder, data=ANSWERS[answer], training={"eval_every_steps": 3})
    nominal = survey(made).nominal_steps
    first, second = (train_run(made, "rdrop", 0, nominal, lambda _: None) for _ in range(2))
    assert (first.run.status, first.run.error, first.run.optimizer_steps) == ("finished", None, 6)
    assert first.run == second.run
    assert first.run.curves["divergence"].values[-1] > 0
    plain = train_run(made, "plain", 0, nominal, lambda _: None)
    assert plain.run.status == "finished"
    assert plain.run.metrics != first.run.metrics
    for name in ("accuracy", "pearson", "micro_f1"):
        if name in first.run.metrics:
            assert first.run.curves[f"eval_{name}"].steps == [3, 6]


def test_a_model_from_scratch_learns_opinions(folder: Path) -> None:
    made = recipe(
        folder,
        None,
        model={"vocabulary_size": 320, "width": 32, "layers": 1, "heads": 2},
        training={"epochs": 12, "learning_rate": 3e-3, "eval_every_epochs": 12},
    )
    run = train_run(made, "plain", 0, survey(made).nominal_steps, lambda _: None).run
    assert run.status == "finished"
    assert run.metrics["accuracy"] == 1.0


def test_a_streamed_split_is_read_in_every_epoch(folder: Path, encoder: str) -> None:
    made = recipe(
        folder, encoder, data={"streaming": True, "shuffle_buffer": 16}, training={"steps": 9, "eval_every_steps": 3}
    )
    task, splits = loaded(made)
    _, kept = loaded(recipe(folder, encoder))
    rows = list(islice(splits.train, len(kept.train)))
    assert [row["texts"] for row in rows] != kept.train["texts"][:]

    def by_text(some: Any) -> list[tuple[str, int]]:
        return sorted((row["texts"][0], row["labels"]) for row in some)

    assert by_text(rows) == by_text(kept.train)
    again, other = (list(islice(loaded(made, seed=seed)[1].train, len(rows))) for seed in (0, 1))
    assert again == rows != other
    assert task.names == ("no", "yes")
    assert "those in train.csv, streamed, for training, 12 for validation (dev.csv)" in splits.description
    assert survey(made).nominal_steps == 9
    first, second = (train_run(made, "rdrop", 0, 9, lambda _: None) for _ in range(2))
    assert (first.run.status, first.run.error, first.run.optimizer_steps) == ("finished", None, 9)
    assert first.run == second.run
    assert "training.steps is null, but the length of streamed data is not known" in message(
        recipe(folder, encoder, data={"streaming": True})
    )


def test_a_streamed_run_that_goes_on_in_a_later_epoch_ends_with_the_same_weights(
    folder: Path, encoder: str, tmp_path: Path
) -> None:
    made = recipe(folder, encoder, data={"streaming": True, "shuffle_buffer": 16}, training={"steps": 12})

    def trained(where: str, resume: Path | None = None, **saving: Any) -> dict[str, Tensor]:
        task, splits = loaded(made)
        model = build_model(task, 0)
        trainer = trainer_of(task, splits, model, tmp_path / where, steps=12, **saving)
        trainer.train(resume_from_checkpoint=str(resume) if resume else None)
        return model.state_dict()

    _, kept = loaded(recipe(folder, encoder))
    assert len(kept.train) < 8 * made.training.batch_size  # so that the eighth step is in a later epoch
    undisturbed = trained("a")
    trained("b", save_strategy="steps", save_steps=8)
    resumed = trained("c", resume=tmp_path / "b" / "checkpoint-8")
    assert all(map(torch.equal, resumed.values(), undisturbed.values()))


def spoil(name: str, text: str) -> Callable[[Path], object]:
    """A folder in which one file is another."""
    return lambda folder: (folder / name).write_text(text)


HEADER = "text,other,label,score,things\n"


@pytest.mark.parametrize(
    ("spoiled", "data", "told"),
    [
        (spoil("x", ""), {"train": "trane.csv"}, "data.train: there is no trane.csv; expected a file or folder in"),
        (spoil("x", ""), {"train": "../train.csv"}, "data.train: the path '../train.csv' leads out of the data folder"),
        (spoil("x", ""), {"test": "train.csv"}, "data.test is train.csv, which is the training split; name another"),
        (spoil("x", ""), {"text": "txt"}, "train.csv: there is no column 'txt', only 'text', 'other', 'label'"),
        (spoil("train.csv", "text,text,label\na,b,c\n"), {}, "train.csv: 2 columns are named 'text'"),
        (spoil("train.csv", HEADER + "a,b,yes,1,film\nc,d\n"), {}, "train.csv:3: got 2 fields, expected 5"),
        (spoil("train.csv", "text;label\na;yes\n"), {}, "the delimiter looks like ';': set data.delimiter to it"),
        (spoil("train.csv", HEADER), {}, "train.csv has no rows; expected at least one"),
        (spoil("train.csv", HEADER + " ,b,yes,1,film\n"), {}, "train.csv:2: text: got an empty text"),
        (spoil("train.csv", HEADER + "a,b,,1,film\n"), {}, "train.csv:2: label: got the text '', expected a label"),
        (
            spoil("train.csv", HEADER + "a,b,yes,1,film\nc,d,yes,1,film\n"),
            {},
            "train.csv: the label of every row is 'yes' (column label); expected at least two classes",
        ),
        (
            spoil("test.csv", HEADER + "a,b,yes,1,film\nc,d,yess,1,film\n"),
            {},
            "test.csv:3: label: got the label 'yess', which no row of train.csv has; expected one of no, yes (did you "
            "mean 'yes'?). Repair the row",
        ),
        (
            spoil("dev.csv", HEADER + "a,b,yes,nan,film\n"),
            ANSWERS["regression"],
            "dev.csv:2: score: got the text 'nan', expected a finite number such as 3.75",
        ),
        (
            spoil("train.csv", HEADER + "a,b,yes,-100,film\n"),
            ANSWERS["regression"],
            "train.csv:2: score: got -100, the number that marks a row without a target; write the targets in another",
        ),
        (
            spoil("dev.csv", HEADER + 'a,b,yes,1,"film,music"\n'),
            ANSWERS["multi-label"],
            "dev.csv:2: things: got the label 'music', which no row of train.csv has; expected one of film, plot",
        ),
        (
            spoil("train.csv", HEADER + "a,b,yes,1,\n"),
            ANSWERS["multi-label"],
            "train.csv: no row has a label (column things); expected at least one",
        ),
        (
            spoil("dev.jsonl", '{"text": "a", "things": {"film": 1}}\n'),
            ANSWERS["multi-label"] | {"validation": "dev.jsonl"},
            "dev.jsonl:1: things: got an object, expected a list of labels or a text with ',' between them",
        ),
        (
            spoil("dev.jsonl", '{"text": "a", "things": ["film", null]}\n'),
            ANSWERS["multi-label"] | {"validation": "dev.jsonl"},
            "dev.jsonl:1: things: got null, expected a label",
        ),
        (
            spoil("names.txt", "no\nyes\nmaybe\n"),
            {"labels": "names.txt"},
            "train.csv: no row has the label 'maybe' of names.txt; add examples of each class, or take its name out",
        ),
        (spoil("names.txt", "no\n\nyes\n"), {"labels": "names.txt"}, "names.txt:2: an empty line; expected the name"),
        (
            spoil("names.txt", "no\nyes\nno\n"),
            {"labels": "names.txt"},
            "names.txt:3: 'no' is there twice, first in line 1",
        ),
        (spoil("names.txt", "\n"), {"labels": "names.txt"}, "names.txt is empty; expected the name of a label"),
        (
            lambda folder: (
                spoil("names.txt", "film\nplot\n")(folder),
                spoil("dev.csv", HEADER + "a,b,yes,1,2\n")(folder),
            ),
            ANSWERS["multi-label"] | {"labels": "names.txt"},
            "dev.csv:2: things: got the label '2', expected one of the 2 names in names.txt, or its number, 0 to 1",
        ),
        (
            lambda folder: write(folder / "train.csv", opinions(8)),
            {"validation": None},
            "train.csv: got 8 rows of 2 classes, of which data.validation_fraction 0.1 holds out 1; expected at",
        ),
        (
            spoil("x", ""),
            {"train_size": 49},
            "train.csv: data.train_size is 49, but there are only 48 rows to draw from",
        ),
        (spoil("x", ""), {"train_size": 6}, "training.batch_size is 8, but there are only 6 training examples"),
        (spoil("x", ""), {"max_length": 65}, "data.max_length is 65, but "),
        (
            lambda folder: write(
                folder / "train.csv", [{**row, "label": str(i % 3)} for i, row in enumerate(opinions(30))]
            ),
            {"metric": "f1", "validation": None, "test": None, "validation_fraction": 0.4},
            "the main metric is 'f1'; expected one of accuracy",
        ),
    ],
)
def test_data_that_cannot_be_used_are_explained(
    folder: Path, encoder: str, spoiled: Callable[[Path], object], data: dict[str, Any], told: str
) -> None:
    spoiled(folder)
    assert told in message(recipe(folder, encoder, data=data))


def test_bad_rows_are_skipped_counted_and_named(folder: Path, encoder: str) -> None:
    with (folder / "train.csv").open("a") as file:
        file.write("a,b,yes,1\n,b,yes,1,film\n")
    spoil("test.csv", HEADER + "a,b,yes,1,film\nc,d,maybe,1,film\n")(folder)
    _, splits = loaded(recipe(folder, encoder, data={"on_bad_row": "skip"}))
    assert (len(splits.train), len(splits.judged("test"))) == (48, 1)
    notes = [note.replace(f"{folder}/", "") for note in splits.notes]
    assert [note.partition(" (")[0] for note in notes] == [
        "2 rows of train.csv were skipped",
        "1 row of test.csv was skipped",
    ]
    assert "line 50: got 4 fields, expected 5" in notes[0]
    assert "line 51: text: got an empty text" in notes[0]
    assert "line 3: label: got the label 'maybe', which no row of train.csv has" in notes[1].replace(f"{folder}/", "")


def test_models_that_cannot_be_used_are_explained(folder: Path, encoder: str, tmp_path: Path) -> None:
    for name in ("./nowhere", f"{folder}/nowhere"):
        assert f"model.name: there is no folder {name}".replace(f"{folder}/", "") in message(recipe(folder, name))
    broken = tmp_path / "broken"
    save_encoder(broken)
    weights = broken / "model.safetensors"
    torch.save({"x": torch.zeros(1)}, broken / "pytorch_model.bin")
    weights.unlink()
    task, _ = loaded(recipe(folder, str(broken)))
    with pytest.raises(UserError, match=r"model.name: AutoModelForSequenceClassification cannot load .*broken"):
        task.build_model()


def test_weights_stored_in_half_precision_are_trained_in_full(folder: Path, tmp_path: Path) -> None:
    name = save_encoder(tmp_path / "half")
    with quiet_loading():
        model: Any = BertModel.from_pretrained(name)
        model.half().save_pretrained(name)
    task, _ = loaded(recipe(folder, name))
    assert {weight.dtype for weight in task.build_model().parameters()} == {torch.float32}


def test_the_head_of_a_model_for_other_classes_is_replaced(folder: Path, encoder: str) -> None:
    rows = [{**row, "label": str(i % 5)} for i, row in enumerate(opinions(48))]
    for name in ("train.jsonl", "dev.jsonl"):
        write(folder / name, rows)
    five, _ = loaded(recipe(folder, encoder, data={"train": "train.jsonl", "validation": "dev.jsonl", "test": None}))
    five.save(build_model(five, 0), folder / "five")
    task, _ = loaded(recipe(folder, str(folder / "five")))
    model: Any = build_model(task, 0)
    assert model.classifier.weight.shape == (2, 16)
    assert model.config.id2label == {0: "no", 1: "yes"}


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (
            ["answer=regression", "metric=f1"],
            "data.metric: got f1, which is no metric of regression; expected one of pearson",
        ),
        (
            ["answer=multi-label", "label_smoothing=0.1"],
            "training.label_smoothing: got 0.1, but only classes can be smoothed, and data.answer is multi-label",
        ),
        (["answer=regression", "divergence=js"], "rdrop.divergence: got js, but numbers are compared by their squared"),
        (["answer=regression", "labels=a.txt"], "data.labels: got a file, but numbers have no names; write null"),
        (["pair=text"], "data.pair: got the column 'text', which is data.text too; name another one"),
        (["label=text"], "data.label: got the column 'text', which is data.text too; name another one"),
        (["heads=3"], "model.heads: got 3, expected a number that divides model.width, which is 128"),
        (["streaming=true"], "data.validation: got null, and a streamed training split has no part to hold out"),
        (
            ["streaming=true", "validation=dev.csv", "train_size=10"],
            "data.train_size: got 10, but nothing can be drawn from a streamed training split; write null",
        ),
    ],
)
def test_recipes_that_cannot_be_are_explained(words: list[str], told: str) -> None:
    with pytest.raises(UserError) as caught:
        load_recipe("text-classification", words)
    assert told in str(caught.value)


@pytest.mark.parametrize(
    ("name", "data", "train", "validation"),
    [
        ("cola", {"text": "sentence"}, 8551, 1043),
        ("mrpc", {"text": "sentence1", "pair": "sentence2"}, 3576, 500),
        ("stsb", {"text": "sentence1", "pair": "sentence2", "label": "score", "answer": "regression"}, 5749, 1500),
        (
            "goemotions",
            {"label": "labels", "labels": "labels.txt", "answer": "multi-label", "quoting": "none"},
            43410,
            5426,
        ),
    ],
)
def test_real_data_load(encoder: str, name: str, data: dict[str, Any], train: int, validation: int) -> None:
    root = Path(os.environ.get("RDROP_DATA", Path(__file__).parents[4] / "shared" / "data"))
    if not (root / name).is_dir():
        pytest.skip(f"{name} is not in {root}; set RDROP_DATA to the folder of the data sets")
    files = {"train": "train.tsv.gz", "validation": "dev.tsv.gz", "test": None, "train_size": 500, "max_length": 64}
    task, splits = loaded(recipe(root / name, encoder, data=files | data))
    assert (len(splits.train), len(splits.watched())) == (500, validation)
    assert f"500 of the {train:,} in train.tsv.gz" in splits.description
    assert len(task.names) == {"goemotions": 28, "stsb": 1}.get(name, 2)
