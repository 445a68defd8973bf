from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader

from rdrop.errors import UserError
from rdrop.toolkit.summary import Confusion, Gallery
from rdrop.toolkit.tasks.digits import DigitsCNN, DigitsData, DigitsRecipe, DigitsTask, TensorRows
from rdrop.toolkit.train import build_model, train_run


def task(**data: int | None) -> DigitsTask:
    return DigitsTask(DigitsRecipe(data=DigitsData.model_validate(data)))


def test_the_split_covers_the_data_once_and_is_stratified() -> None:
    splits = task(train_size=300).load(seed=3)
    assert splits.validation is None
    assert splits.test is not None
    train, test = splits.train.columns, splits.test.columns
    assert train["pixel_values"].shape == (300, 1, 8, 8)
    assert test["pixel_values"].shape == (1497, 1, 8, 8)
    images = torch.cat([train["pixel_values"], test["pixel_values"]]).flatten(1)
    everything = task(train_size=100).load(seed=9)
    assert everything.test is not None
    again = torch.cat([everything.train.columns["pixel_values"], everything.test.columns["pixel_values"]])
    assert torch.equal(images.sort(0).values, again.flatten(1).sort(0).values)
    assert train["pixel_values"].dtype == torch.float32
    assert (float(images.min()), float(images.max())) == (0.0, 1.0)
    assert set(train["labels"].bincount().tolist()) <= {29, 30, 31}
    assert "300 labelled training images, drawn by class anew for each seed" in splits.description
    assert "other 1,497 as the test split" in splits.description


def test_the_seed_draws_the_split_unless_the_recipe_does() -> None:
    def images(split_seed: int | None, seed: int) -> torch.Tensor:
        found: torch.Tensor = task(split_seed=split_seed).load(seed).train.columns["pixel_values"]
        return found

    assert torch.equal(images(None, 1), images(None, 1))
    assert not torch.equal(images(None, 1), images(None, 2))
    assert torch.equal(images(7, 1), images(7, 2))
    assert torch.equal(images(7, 1), images(None, 7))


def test_a_loader_reads_whole_batches_of_the_rows_asked_for() -> None:
    rows = TensorRows(x=torch.arange(5) * 10, labels=torch.arange(5))
    assert len(rows) == 5
    assert rows[3] == {"x": torch.tensor(30), "labels": torch.tensor(3)}
    batches = list(DataLoader(rows, batch_size=2, collate_fn=task().collate))
    assert [batch["x"].tolist() for batch in batches] == [[0, 10], [20, 30], [40]]


def test_the_loss_is_there_with_labels_only_and_is_the_mean_cross_entropy() -> None:
    torch.manual_seed(0)
    model = DigitsCNN(dropout=0.25, classes=10).eval()
    images, labels = torch.rand(4, 1, 8, 8), torch.tensor([1, 2, 3, 4])
    plain, labelled = model(images), model(images, labels)
    assert plain.keys() == {"logits"}
    assert torch.equal(plain["logits"], labelled["logits"])
    torch.testing.assert_close(labelled["loss"], cross_entropy(plain["logits"], labels))


def test_every_dropout_layer_has_the_rate() -> None:
    model = DigitsCNN(dropout=0.25, classes=10)
    assert [layer.p for layer in model.modules() if isinstance(layer, nn.Dropout)] == [0.25, 0.25]


def test_a_saved_model_predicts_the_same_from_image_files(tmp_path: Path) -> None:
    first = task()
    rows = first.load(0).test
    assert rows is not None
    pictures = []
    for index in range(3):
        pixels = (rows[index]["pixel_values"][0] * 255).round().to(torch.uint8)
        pictures.append(tmp_path / f"{index}.png")
        Image.fromarray(pixels.numpy()).save(pictures[-1])
    model = build_model(first, 0)
    first.save(model, tmp_path)
    second = task()
    read = second.read(pictures)
    assert torch.allclose(read.columns["pixel_values"], rows.columns["pixel_values"][:3], atol=1 / 255)
    answers = list(second.predict(second.restore(tmp_path), read, samples=0, seed=0))
    with torch.no_grad():
        expected = model.eval()(read.columns["pixel_values"])["logits"].softmax(-1)
    assert [answer["label"] for answer in answers] == [str(int(row.argmax())) for row in expected]
    assert [answer["confidence"] for answer in answers] == pytest.approx(expected.max(-1).values.tolist())
    averaged = list(second.predict(second.restore(tmp_path), read, samples=50, seed=0))
    assert all(0 < answer["spread"] < 0.2 for answer in averaged)
    assert "spread" not in answers[0]


def test_weights_that_are_none_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"model\.safetensors does not hold the weights of digits-cnn"):
        task().restore(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"no weights")
    with pytest.raises(UserError, match=r"model\.safetensors does not hold the weights of digits-cnn"):
        task().restore(tmp_path)


def test_the_report_shows_confusions_and_the_worst_images() -> None:
    recipe = DigitsRecipe.model_validate({"training": {"steps": 3}, "compare": {"samples": 2}})
    run = train_run(recipe, "plain", recipe.compare.seeds[0], 3, lambda _: None).run
    confusions, worst = run.exhibits
    assert isinstance(confusions, Confusion)
    assert isinstance(worst, Gallery)
    counts = np.array(confusions.counts)
    assert counts.sum() == 1497
    assert np.trace(counts) / 1497 == pytest.approx(run.metrics["accuracy"])
    images, labels = load_digits(return_X_y=True)
    assert len(worst.pictures) == 12
    for picture in worst.pictures:
        shown = np.asarray(Image.open(io.BytesIO(picture.image)), dtype=float).ravel() / 255 * 16
        (found,) = np.flatnonzero(np.abs(images - shown).max(axis=1) < 0.05)[:1]
        assert picture.caption[0].startswith(f"{labels[found]}: ")
        assert not picture.caption[1].startswith(f"{labels[found]}: ")
