from __future__ import annotations

import io
import os
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor

from pictures import STAGES, class_folders, listed, parquet, picture_file
from rdrop.errors import UserError
from rdrop.toolkit import train
from rdrop.toolkit.arms import objective
from rdrop.toolkit.images.network_pair import NetworkPair
from rdrop.toolkit.images.rows import ImageRows
from rdrop.toolkit.recipe_file import load_recipe
from rdrop.toolkit.runs import RunRecord
from rdrop.toolkit.summary import Confusion, Gallery
from rdrop.toolkit.tasks.image_classification import ImageClassificationTask, ImageRecipe
from rdrop.toolkit.train import build_model, planned_steps, survey, train_run

Sections = dict[str, Any]
DATA = Path(os.environ.get("RDROP_DATA", Path(__file__).parents[4] / "shared" / "data"))


def recipe(folder: Path, **sections: Any) -> ImageRecipe:
    """A small network from scratch on the images of a folder."""
    given: dict[str, Sections] = {
        "data": {"folder": str(folder), "train": "train", "validation_fraction": 0.25},
        "model": {"name": "test_resnet", "pretrained": False, "image_size": 32, "dropout": 0.3},
        "training": {"epochs": 2, "batch_size": 8, "learning_rate": 1e-3, "device": "cpu"},
        "compare": {"samples": 2, "seeds": [0, 1]},
    }
    for name, section in sections.items():
        given[name] = given.get(name, {}) | section
    return ImageRecipe.model_validate(given)


def load(folder: Path, seed: int = 0, **sections: Any) -> tuple[ImageClassificationTask, Any]:
    task = ImageClassificationTask(recipe(folder, **sections))
    return task, task.load(seed)


def message(folder: Path, **sections: Any) -> str:
    """The message about data that cannot be used, with paths from the folder."""
    with pytest.raises(UserError) as caught:
        load(folder, **sections)
    return str(caught.value).replace(f"{folder.resolve()}/", "")


def names_of(rows: ImageRows) -> list[str]:
    return [photo.name for photo in rows.photos]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    class_folders(tmp_path / "train", 8)
    return tmp_path


def test_every_split_from_its_own_kind_of_data(folder: Path) -> None:
    listed(folder / "train.csv", folder / "train")
    class_folders(folder / "val", 2, start=20)
    (folder / "classes.txt").write_text("\n".join(STAGES) + "\n")
    parquet(folder / "test.parquet", 3, structs=True, start=30)
    data = {"train": "train.csv", "validation": "val", "test": "test.parquet", "classes": "classes.txt"}
    task, splits = load(folder, data=data)
    assert task.names == list(STAGES)  # in the order of the file
    assert splits.description == (
        "Images of 4 classes: 32 of the 32 in train.csv for training, 8 for validation (val), 12 for testing "
        "(test.parquet)."
    )
    assert Counter(splits.test.labels) == {0: 3, 1: 3, 2: 3, 3: 3}
    assert names_of(splits.test)[0] == "test.parquet, row 1"
    assert splits.train[0]["labels"] == STAGES.index("heading")
    batch = task.collate([splits.test[0], splits.test[11]])
    assert batch["pixel_values"].shape == (2, 3, 32, 32)
    assert batch["labels"].tolist() == [0, 3]


def test_a_part_is_held_out_and_examples_are_drawn_by_class(folder: Path) -> None:
    _, splits = load(folder, seed=3, data={"train_size": 12})
    assert Counter(splits.validation.labels) == {0: 2, 1: 2, 2: 2, 3: 2}
    assert Counter(splits.train.labels) == {0: 3, 1: 3, 2: 3, 3: 3}
    assert not set(names_of(splits.train)) & set(names_of(splits.validation))
    assert (
        "12 of the 32 in train for training, drawn by class anew for each seed, 8 for validation" in splits.description
    )
    assert names_of(load(folder, 3, data={"train_size": 12})[1].train) == names_of(splits.train)
    assert names_of(load(folder, 4, data={"train_size": 12})[1].train) != names_of(splits.train)
    fixed = {"train_size": 12, "split_seed": 3}
    assert names_of(load(folder, 4, data=fixed)[1].train) == names_of(splits.train)
    assert "drawn by class once, with seed 3" in load(folder, 4, data=fixed)[1].description


def test_labels_are_names_or_numbers_in_order(tmp_path: Path) -> None:
    class_folders(tmp_path / "train", 4, ["10", "9", "2"])
    assert load(tmp_path, data={"validation_fraction": 0.4})[0].names == ["2", "9", "10"]


def test_cache_changes_nothing_but_memory(folder: Path) -> None:
    held, lazy = (load(folder, data={"cache": cache})[1] for cache in (True, False))
    assert held.train.photos[0].pixels is not None
    assert lazy.train.photos[0].pixels is None
    for part in ("train", "validation"):
        for a, b in zip(getattr(held, part), getattr(lazy, part), strict=True):
            assert torch.equal(a["pixel_values"], b["pixel_values"])


def test_training_images_are_augmented_and_others_are_not(folder: Path) -> None:
    _, splits = load(folder)
    first = splits.train[0]["pixel_values"], splits.validation[0]["pixel_values"]
    splits.train.set_epoch(1), splits.validation.set_epoch(1)
    assert not torch.equal(splits.train[0]["pixel_values"], first[0])
    assert torch.equal(splits.validation[0]["pixel_values"], first[1])
    _, plain = load(folder, training={"augmentation": "none"})
    once = plain.train[0]["pixel_values"]
    plain.train.set_epoch(1)
    assert torch.equal(plain.train[0]["pixel_values"], once)


def test_notes_tell_what_was_skipped_unused_and_repeated(folder: Path) -> None:
    class_folders(folder / "test", 2, start=7)  # number 7 is in training as well
    (folder / "train" / "sprout" / "broken.png").write_bytes(b"no")
    (folder / "train" / "list.csv").write_text("x")
    _, splits = load(folder, data={"test": "test", "on_bad_row": "skip", "split_seed": 1})
    told = "\n".join(splits.notes)
    assert "1 file of" in told
    assert "broken.png: it is not an image" in told
    assert "Files beside the folders of the classes are not used: list.csv" in told
    assert "of the test split, and the same file in training" in told


@pytest.mark.parametrize(
    ("table", "expected"),
    [
        (
            "image,label\ntrain/sprout/0.png,bloom\n",
            "val.csv:2: label: got the label 'bloom', which no row of train has",
        ),
        ("image,label\ntrain/sprout/0.png,Sprout\n", "did you mean 'sprout'?"),
        ("image,label\n", "val.csv has no rows; expected at least one"),
        ("img,label\nx,y\n", "val.csv: there is no column 'image', only 'img', 'label'; did you mean 'img'?"),
        ("image,label,label\nx,y,z\n", "val.csv: 2 columns are named 'label'"),
        ("image;label\nx;y\n", "there is no column 'image', only 'image;label'"),
    ],
)
def test_a_table_that_cannot_be_used_is_named_with_its_row(folder: Path, table: str, expected: str) -> None:
    (folder / "val.csv").write_text(table)
    assert expected in message(folder, data={"validation": "val.csv"})


def test_an_unknown_label_may_be_skipped(folder: Path) -> None:
    (folder / "val.csv").write_text("image,label\ntrain/sprout/0.png,bloom\ntrain/sprout/1.png,sprout\n")
    _, splits = load(folder, data={"validation": "val.csv", "on_bad_row": "skip"})
    assert len(splits.validation) == 1
    assert any("val.csv was skipped" in note and "'bloom'" in note for note in splits.notes)


def test_the_data_as_a_whole_are_checked(folder: Path) -> None:
    assert message(folder, data={"train": "missing"}).startswith("data.train: there is no missing; expected a file")
    assert "leads out of the data folder" in message(folder, data={"train": "../elsewhere"})
    assert message(folder, data={"test": "train"}).startswith("data.test is train, which is the training split")
    class_folders(folder / "one", 4, ["only"])
    assert message(folder, data={"train": "one"}) == (
        "one: the label of every row is 'only' (column label); expected at least two classes"
    )
    (folder / "classes.txt").write_text("\n".join([*STAGES, "wilted"]))
    assert "train: no row has the label 'wilted' of classes.txt" in message(folder, data={"classes": "classes.txt"})
    assert "there are only 24 rows to draw from" in message(folder, data={"train_size": 30})
    class_folders(folder / "few", 1)
    assert "expected at least one of each class on either side" in message(folder, data={"train": "few"})


def test_a_batch_larger_than_the_data_and_no_split_to_judge_on(folder: Path) -> None:
    with pytest.raises(UserError, match=r"training.batch_size is 32, but there are only 24 training examples"):
        survey(recipe(folder, training={"batch_size": 32}))
    with pytest.raises(UserError, match=r"compare.split is test, but there is no such split"):
        survey(recipe(folder, data={"validation_fraction": 0.0}))


@pytest.mark.parametrize(
    ("sections", "expected"),
    [
        (
            ["training.color_jitter=0.3", "training.augmentation=none"],
            "training.color_jitter: got 0.3, which has no effect",
        ),
        (["color_jitter=0.3", "augmentation=randaugment"], "has no effect with augmentation randaugment"),
        (["random_erasing=0.3", "augmentation=none"], "training.random_erasing: got 0.3, which has no effect"),
        (["model.second=resnet18"], "compare.arms: got twice, longer, but with two networks"),
        (
            ["model.second=resnet18", "compare.arms=plain,rdrop", "passes=3"],
            "rdrop.passes: got 3, but with two networks",
        ),
        (["model.second=resnet18", "compare.arms=plain,rdrop", "strategy=concat"], "rdrop.strategy: got concat, but"),
        (["model.dropout=0", "alpha=0"], "rdrop.alpha: got 0, and 0 for model.dropout"),
        (["image_size=4"], "model.image_size: got 4, expected null or a whole number, at least 8"),
    ],
)
def test_a_recipe_that_contradicts_itself(sections: list[str], expected: str) -> None:
    with pytest.raises(UserError) as caught:
        load_recipe("image-classification", sections)
    assert expected in str(caught.value)


def test_a_pair_or_stochastic_depth_makes_passes_differ_without_dropout() -> None:
    load_recipe("image-classification", ["dropout=0", "alpha=0", "drop_path=0.1"])
    load_recipe("image-classification", ["dropout=0", "alpha=0", "second=resnet18", "arms=plain,rdrop"])


def lasting(record: RunRecord) -> dict[str, Any]:
    return record.model_dump(exclude={"seconds", "step_ms"})


def test_a_run_learns_and_has_everything_that_the_report_shows(folder: Path) -> None:
    settings = recipe(folder, training={"epochs": 8, "eval_every_epochs": 8})
    nominal = survey(settings).nominal_steps
    assert nominal == 8 * 3
    record = train_run(settings, "rdrop", 0, nominal, lambda _: None)
    run = record.run
    assert (run.status, run.error, run.optimizer_steps) == ("finished", None, nominal)
    task = ImageClassificationTask(settings)
    assert {metric.name for metric in task.metrics} <= run.metrics.keys()
    assert task.metrics[0].name == "accuracy"
    assert run.metrics["accuracy"] > 0.5  # four classes
    assert run.curves["divergence"].values[-1] > 0
    assert sum(b.count for b in run.reliability) == 8
    confusion, gallery = run.exhibits
    assert isinstance(confusion, Confusion)
    assert confusion.labels == sorted(STAGES)
    assert np.trace(confusion.counts) == round(8 * run.metrics["accuracy"])
    assert isinstance(gallery, Gallery)
    assert len(gallery.pictures) == 8
    assert "The 8 images" in gallery.reading
    worst = [float(picture.caption[1].rpartition(": ")[2].removesuffix("%")) for picture in gallery.pictures]
    assert worst == sorted(worst)
    for shown in gallery.pictures:
        name, right, said = shown.caption
        assert name.startswith(f"train/{right.partition(':')[0]}/")
        assert said.partition(":")[0] in STAGES
        with Image.open(io.BytesIO(shown.image)) as image:
            assert max(image.size) <= 96
    assert lasting(train_run(settings, "rdrop", 0, nominal, lambda _: None)) == lasting(record)
    assert train_run(settings, "rdrop", 1, nominal, lambda _: None).run.exhibits == []


def test_all_arms_see_the_same_images_in_the_same_order(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, list[Tensor]] = {}
    read = ImageRows.__getitem__

    def watched(self: ImageRows, index: int) -> dict[str, Any]:
        row = read(self, index)
        if self.seed is not None:
            seen[arm].append(row["pixel_values"])
        return row

    monkeypatch.setattr(ImageRows, "__getitem__", watched)
    for arm in ("plain", "rdrop"):
        seen[arm] = []
        train_run(recipe(folder), arm, 0, 6, lambda _: None)
    assert len(seen["plain"]) == len(seen["rdrop"]) == 4 + 2 * 24  # the example batch, and two epochs
    assert all(map(torch.equal, seen["plain"], seen["rdrop"]))
    epochs = [torch.stack(seen["plain"][4 + start :][:24]).sort(0).values for start in (0, 24)]
    assert not torch.equal(*epochs)  # augmented anew


def trainer_of(
    task: ImageClassificationTask, model: nn.Module, splits: Any, where: Path, steps: int, **saving: Any
) -> Any:
    goal = objective("rdrop", task.recipe)
    return train.make_trainer(task, goal, 0, model, splits, steps=steps, nominal=steps, folder=str(where), **saving)


def test_a_run_that_goes_on_within_an_epoch_ends_with_the_same_weights(folder: Path, tmp_path: Path) -> None:
    def trained(where: Path, steps: int, **saving: Any) -> dict[str, Tensor]:
        resume = saving.pop("resume", None)
        task, splits = load(folder, training={"augmentation": "randaugment"})
        model = build_model(task, 0)
        trainer_of(task, model, splits, where, steps, **saving).train(resume_from_checkpoint=resume)
        return model.state_dict()

    undisturbed = trained(tmp_path / "a", 7)
    trained(tmp_path / "b", 7, save_strategy="steps", save_steps=4)  # in the second of three-step epochs
    resumed = trained(tmp_path / "c", 7, resume=str(tmp_path / "b" / "checkpoint-4"))
    assert all(map(torch.equal, resumed.values(), undisturbed.values()))


def test_the_objective_is_the_mean_cross_entropy_and_alpha_times_the_divergence(folder: Path, tmp_path: Path) -> None:
    task, splits = load(folder, rdrop={"alpha": 0.7})
    trainer = trainer_of(task, build_model(task, 0), splits, tmp_path / "t", 1)
    batch = task.collate([splits.train[i] for i in range(6)])
    model = trainer.model.train()
    loss, outputs = trainer.compute_loss(model, batch, return_outputs=True)
    p, q = outputs["logits"].log_softmax(-1)
    rows = torch.arange(6)
    task_loss = -(p[rows, batch["labels"]] + q[rows, batch["labels"]]).mean() / 2
    divergence = ((p.exp() * (p - q)).sum(-1) + (q.exp() * (q - p)).sum(-1)).mean() / 2
    assert bool(divergence > 0)
    torch.testing.assert_close(loss, task_loss + 0.7 * divergence)
    # An image without a label counts in neither.
    batch["labels"][2:] = -100
    loss, outputs = trainer.compute_loss(model, batch, return_outputs=True)
    p, q = outputs["logits"][:, :2].log_softmax(-1)
    task_loss = -(p[rows[:2], batch["labels"][:2]] + q[rows[:2], batch["labels"][:2]]).mean() / 2
    divergence = ((p.exp() * (p - q)).sum(-1) + (q.exp() * (q - p)).sum(-1)).mean() / 2
    torch.testing.assert_close(loss, task_loss + 0.7 * divergence)


def saved(task: ImageClassificationTask, model: nn.Module, where: Path) -> tuple[ImageClassificationTask, nn.Module]:
    """The model after a way over the disk, in a task that has seen no data."""
    task.save(model, where)
    other = ImageClassificationTask(task.recipe)
    return other, other.restore(where).eval()


def test_save_restore_and_predict(folder: Path, tmp_path: Path) -> None:
    task, _ = load(folder)
    model = build_model(task, 0)
    other, restored = saved(task, model, tmp_path / "m")
    assert other.names == task.names
    new = class_folders(tmp_path / "new", 1, ["x", "y"], start=50)
    rows = other.read([new / "y" / "50.png", new])
    answers = list(other.predict(restored, rows, samples=0, seed=0))
    assert [answer["image"] for answer in answers] == [str(new / name) for name in ("y/50.png", "x/50.png", "y/50.png")]
    assert answers[0] == answers[2]
    pixels = torch.stack([rows[i]["pixel_values"] for i in range(3)])
    expected = model.eval()(pixels)["logits"].softmax(-1).detach()
    assert list(answers[1]["probabilities"]) == task.names
    assert list(answers[1]["probabilities"].values()) == pytest.approx(expected[1].tolist())
    assert answers[1]["confidence"] == pytest.approx(float(expected[1].max()))
    assert "spread" not in answers[1]
    sampled = list(other.predict(restored, rows, samples=5, seed=0))
    assert all(answer["spread"] > 0 for answer in sampled)
    assert sampled == list(other.predict(restored, rows, samples=5, seed=0))
    assert sampled != list(other.predict(restored, rows, samples=5, seed=1))
    (tmp_path / "note.txt").write_text("no image")
    with pytest.raises(UserError, match=r"note\.txt: it is not an image"):
        other.read([tmp_path / "note.txt"])


def test_a_model_of_transformers_from_a_folder(folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, image_size=16, patch_size=8
    )
    ViTForImageClassification(config).save_pretrained(tmp_path / "vit")
    ViTImageProcessor(size={"height": 16, "width": 16}).save_pretrained(tmp_path / "vit")
    capfd.readouterr()
    settings = recipe(
        folder, model={"name": str(tmp_path / "vit"), "pretrained": True, "image_size": None, "dropout": 0.1}
    )
    record = train_run(settings, "rdrop", 0, 3, lambda _: None)
    assert (record.run.status, record.run.error) == ("finished", None)
    assert record.run.curves["divergence"].values[0] > 0
    task = ImageClassificationTask(settings)
    splits = task.load(0)
    model = build_model(task, 0)
    other, restored = saved(task, model, tmp_path / "m")
    answers = other.predict(restored, splits.validation, samples=0, seed=0)
    expected = task.predict(model, splits.validation, samples=0, seed=0)
    assert list(answers) == list(expected)
    assert capfd.readouterr() == ("", "")


PAIR: dict[str, Any] = {
    "model": {"second": "test_efficientnet", "dropout": 0.0},
    "compare": {"arms": ["plain", "rdrop"]},
}


def test_two_networks_are_trained_together_and_judged_each_and_on_average(folder: Path) -> None:
    settings = recipe(folder, **PAIR, training={"epochs": 8, "eval_every_epochs": 8}, rdrop={"alpha": 0.6})
    runs = {arm: train_run(settings, arm, 0, 24, lambda _: None) for arm in settings.compare.arms}
    for record in runs.values():
        assert (record.run.error, record.strategy, record.step_compute) == (None, "single", 1.0)
    names = [metric.name for metric in ImageClassificationTask(settings).metrics]
    assert set(names) <= runs["plain"].run.metrics.keys()
    assert (names[:2], names[-2:]) == (["accuracy", "nll"], ["accuracy_first", "accuracy_second"])
    assert runs["rdrop"].run.curves["divergence"].values[-1] > 0
    assert runs["plain"].run.metrics["nll"] != runs["rdrop"].run.metrics["nll"]
    loss, parts = runs["plain"].run.curves["train_loss"].values, runs["plain"].run.curves["task_loss"].values
    assert loss == pytest.approx(parts, rel=1e-5)  # alpha 0
    assert "eval_accuracy_second" in runs["plain"].run.curves


def test_a_pair_is_saved_in_two_folders(folder: Path, tmp_path: Path) -> None:
    task, splits = load(folder, **PAIR)
    model = build_model(task, 0)
    assert isinstance(model, NetworkPair)
    other, restored = saved(task, model, tmp_path / "m")
    assert sorted(path.name for path in (tmp_path / "m").iterdir()) == ["first", "second"]
    answers = list(other.predict(restored, splits.validation, samples=0, seed=0))
    pixels = torch.stack([row["pixel_values"] for row in splits.validation])
    outputs = model.eval()(pixels)
    average = (outputs["first"].softmax(-1) + outputs["second"].softmax(-1)) / 2
    assert [answer["confidence"] for answer in answers] == pytest.approx(average.max(-1).values.tolist())
    (tmp_path / "m" / "second" / "config.json").unlink()
    with pytest.raises(UserError, match=r"config\.json cannot be read"):
        other.restore(tmp_path / "m")


def test_more_classes_than_a_table_can_show(tmp_path: Path) -> None:
    for label in range(101):
        where = tmp_path / "train" / f"class {label}"
        where.mkdir(parents=True)
        for number in range(2):
            (where / f"{number}.png").write_bytes(picture_file(label, number, (8, 8)))
    settings = recipe(tmp_path, data={"validation_fraction": 0.5}, model={"image_size": 16})
    run = train_run(settings, "plain", 0, 1, lambda _: None).run
    assert run.error is None
    assert [exhibit.kind for exhibit in run.exhibits] == ["gallery"]
    assert planned_steps(*load(tmp_path, data={"validation_fraction": 0.5})) == 2 * 13


def real(name: str) -> Path:
    """The folder of a data set, which not every machine has."""
    if not (DATA / name).is_dir():
        pytest.skip(f"there is no {DATA / name}; set RDROP_DATA to the folder of the data sets")
    return DATA / name


def test_plant_seedlings_as_a_table_and_as_folders() -> None:
    folder = real("plant_seedlings")
    data = {"train": "val/labels.csv", "test": "test", "validation_fraction": 0.1, "classes": "classes.txt"}
    task, splits = load(folder, data=data)
    assert (len(splits.train), len(splits.validation), len(splits.test)) == (637, 71, 723)
    assert task.names == (folder / "classes.txt").read_text().split()
    [note] = splits.notes  # no image is in two splits
    assert note.startswith("Files beside the folders of the classes are not used: labels.csv in ")
    assert names_of(splits.test)[0].startswith("test/Black-grass/")


def test_cifar10_as_parquet_with_numbers_for_labels() -> None:
    data = {"train": "test.parquet", "classes": "classes.txt", "train_size": 100, "validation_fraction": 0.01}
    task, splits = load(real("cifar10"), data=data)
    assert task.names[:3] == ["airplane", "automobile", "bird"]
    assert Counter(splits.train.labels) == dict.fromkeys(range(10), 10)
    assert len(splits.validation) == 100
    assert splits.train.photos[0].pixels.shape == (32, 32, 3)
