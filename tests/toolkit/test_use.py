from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from rdrop.errors import UserError
from rdrop.toolkit.single_run import read_record
from rdrop.toolkit.tasks.digits import DigitsTask
from rdrop.toolkit.use import evaluate_run, predict_files, write_answers
from trained_digits import small_recipe, train_digits, write_images


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose arm has a dropout rate of its own."""
    out = tmp_path_factory.mktemp("trained") / "run"
    train_digits(out, small_recipe(compare={"chosen": {"rdrop": {"dropout": 0.6}}}))
    return out


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return write_images(tmp_path_factory.mktemp("images"), 12)


def predict(
    run: Path, files: list[Path], samples: int = 0, min_confidence: float = 0.0, seed: int = 0
) -> list[dict[str, Any]]:
    count, answers = predict_files(run, files, samples=samples, min_confidence=min_confidence, seed=seed)
    held = list(answers)
    assert count == len(held)
    return held


def test_evaluation_gives_the_metrics_of_the_record(trained: Path) -> None:
    record = read_record(trained)
    found = evaluate_run(trained, [])
    assert found.metrics == record.run.metrics
    assert (found.split, found.data, found.notes) == ("test", record.data, ())
    assert [metric.name for metric in found.described] == [metric.name for metric in record.metrics]


def test_evaluation_reads_the_data_that_it_is_told_to(trained: Path) -> None:
    found = evaluate_run(trained, ["data.train_size=1000"])
    assert "the other 797 as the test split" in found.data
    assert found.metrics["accuracy"] != read_record(trained).run.metrics["accuracy"]


def test_evaluation_writes_nothing_and_tracks_nothing(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers.integrations import integration_utils

    monkeypatch.setattr(integration_utils, "is_wandb_available", lambda: False)  # its callback would be refused
    before = sorted(trained.rglob("*"))
    evaluate_run(trained, ["training.report_to=[wandb]"])
    assert sorted(trained.rglob("*")) == before


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("data.trian_size=100", "on the command line, data.trian_size=100: .* did you mean data.train_size"),
        ("data.train_size=3", "expected a whole number, at least 20"),
        ("train_size", "expected key=value"),
    ],
)
def test_a_mistaken_change_is_told(trained: Path, word: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        evaluate_run(trained, [word])


def test_a_model_of_other_labels_is_not_judged(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load, restore = DigitsTask.load, DigitsTask.restore

    def learned(self: Any, seed: int) -> Any:
        self.names = [str(index) for index in range(7)]
        return load(self, seed)

    def held(self: Any, folder: Path) -> Any:
        self.names = ["0", "1"]
        return restore(self, folder)

    monkeypatch.setattr(DigitsTask, "load", learned)
    monkeypatch.setattr(DigitsTask, "restore", held)
    with pytest.raises(
        UserError, match=r"give the labels 0, 1, 2, 3, 4 and 2 more, but the model of .*run knows 0, 1;"
    ):
        evaluate_run(trained, [])


# Numpy's word on counting what is not a number into bins, before the metrics are found not to be finite.
@pytest.mark.filterwarnings("ignore:invalid value encountered in cast:RuntimeWarning")
def test_a_model_whose_metrics_are_no_numbers_is_told(trained: Path, tmp_path: Path) -> None:
    copy = tmp_path / "run"
    shutil.copytree(trained, copy)
    weights = load_file(copy / "model" / "model.safetensors")
    save_file(
        {name: torch.full_like(value, torch.nan) for name, value in weights.items()}, copy / "model/model.safetensors"
    )
    with pytest.raises(UserError, match=r"the model of .*run cannot be judged: not finite on the judged split: nll"):
        evaluate_run(copy, [])


def test_predictions_are_those_of_the_model_in_the_order_of_the_files(trained: Path, images: list[Path]) -> None:
    answers = predict(trained, images)
    backwards = predict(trained, images[::-1])
    assert [answer["label"] for answer in answers] == [answer["label"] for answer in backwards][::-1]
    assert [answer["image"] for answer in answers] == [str(path) for path in images]
    for answer in answers:
        assert answer["confidence"] == max(answer["probabilities"].values())
        assert answer["label"] == max(answer["probabilities"], key=answer["probabilities"].__getitem__)
    assert len({answer["label"] for answer in answers}) > 2


def test_samples_are_drawn_at_the_dropout_of_the_arm(trained: Path, images: list[Path]) -> None:
    once, again, other = (predict(trained, images, samples=8, seed=seed) for seed in (0, 0, 1))
    assert once == again != other
    spread = sum(answer["spread"] for answer in once)
    copy = trained.with_name("without")
    shutil.copytree(trained, copy)
    recipe = (copy / "recipe.yaml").read_text()
    (copy / "recipe.yaml").write_text(recipe.replace("dropout: 0.6", "dropout: 0.05"))
    assert sum(answer["spread"] for answer in predict(copy, images, samples=8)) < spread / 2


def test_an_unsure_answer_is_withheld(trained: Path, images: list[Path]) -> None:
    confidences = sorted(answer["confidence"] for answer in predict(trained, images))
    limit = (confidences[5] + confidences[6]) / 2
    answers = predict(trained, images, min_confidence=limit)
    assert [answer["abstained"] for answer in answers].count(True) == 6
    for answer in answers:
        assert answer["abstained"] == (answer["confidence"] < limit) == (answer["label"] is None)
    assert all("abstained" not in answer for answer in predict(trained, images))


def test_answers_without_a_confidence_cannot_be_withheld(
    trained: Path, images: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def values(*_: Any, **__: Any) -> Iterator[dict[str, Any]]:
        yield {"value": 1.5}

    monkeypatch.setattr(DigitsTask, "predict", values)
    _, answers = predict_files(trained, images, samples=0, min_confidence=0.0, seed=0)
    assert list(answers) == [{"value": 1.5}]
    _, answers = predict_files(trained, images, samples=0, min_confidence=0.5, seed=0)
    with pytest.raises(UserError, match="--min-confidence needs answers with a confidence"):
        list(answers)


def test_files_that_cannot_be_predicted_on(trained: Path, images: list[Path], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"there is no .*missing\.png; expected a file or folder to predict on"):
        predict(trained, [images[0], tmp_path / "missing.png"])
    broken = tmp_path / "broken.png"
    broken.write_bytes(images[0].read_bytes()[:60])
    with pytest.raises(UserError, match=r"broken\.png: it cannot be decoded, it may be cut off"):
        predict(trained, [broken])
    with pytest.raises(UserError, match="holds no run"):
        predict(tmp_path, [images[0]])


def test_nothing_to_predict_is_told(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(DigitsTask, "read", lambda *_: [])
    with pytest.raises(UserError, match=f"there is nothing to predict in {tmp_path}"):
        predict(trained, [tmp_path])


def test_a_run_that_is_not_finished_or_has_lost_its_model_is_told(
    trained: Path, images: list[Path], tmp_path: Path
) -> None:
    unfinished, lost = tmp_path / "unfinished", tmp_path / "lost"
    for copy in (unfinished, lost):
        shutil.copytree(trained, copy)
    (unfinished / "run.json").unlink()
    shutil.rmtree(lost / "model")
    with pytest.raises(UserError, match=r"unfinished holds no finished run \(there is no run\.json\)"):
        predict(unfinished, images)
    with pytest.raises(UserError, match="lost holds no trained model any more"):
        predict(lost, images)


ANSWERS: list[dict[str, Any]] = [
    {"label": "a", "confidence": 0.5, "probabilities": {"a": 0.5, "ü": 0.5}},
    {"label": None, "confidence": 0.25, "probabilities": {}, "abstained": True},
]


def test_answers_are_written_as_json_lines(tmp_path: Path) -> None:
    write_answers(ANSWERS, tmp_path / "out.jsonl")
    text = (tmp_path / "out.jsonl").read_text(encoding="utf-8")
    assert [json.loads(line) for line in text.splitlines()] == ANSWERS
    assert "ü" in text


def test_answers_are_written_as_csv_with_every_column(tmp_path: Path) -> None:
    write_answers(ANSWERS, tmp_path / "out.csv")
    with (tmp_path / "out.csv").open(encoding="utf-8", newline="") as file:
        first, second = csv.DictReader(file)
    assert json.loads(first["probabilities"]) == ANSWERS[0]["probabilities"]
    assert (first["label"], first["abstained"]) == ("a", "")
    assert (second["label"], second["abstained"]) == ("", "True")
