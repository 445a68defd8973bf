from __future__ import annotations

import io
import json
import os
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor

from command_line import rdrop
from pictures import STAGES, CountedFile, class_folders, listed, parquet, picture_file
from rdrop.errors import UserError
from rdrop.toolkit import train
from rdrop.toolkit.arms import objective
from rdrop.toolkit.data.rows import Row
from rdrop.toolkit.images import tables as image_tables
from rdrop.toolkit.images.network_pair import NetworkPair
from rdrop.toolkit.images.recipe import ImageRecipe
from rdrop.toolkit.images.rows import ImageRows
from rdrop.toolkit.images.tables import Decoder, ListedImage, Photo
from rdrop.toolkit.recipe_file import load_recipe
from rdrop.toolkit.runs import RunRecord
from rdrop.toolkit.single_run import read_record
from rdrop.toolkit.summary import Confusion, Gallery
from rdrop.toolkit.tasks.image_classification import ImageClassificationTask
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
        (["model.second=resnet18", "compare.arms=plain,rdrop", "every=2"], "rdrop.every: got 2, but with two networks"),
        (["model.dropout=0", "alpha=0"], "rdrop.alpha: got 0, and 0 for model.dropout"),
        (["image_size=4"], "model.image_size: got 4, expected null or a whole number, at least 8"),
        (["streaming=true"], "data.validation: got null, and a streamed training split has no part to hold out"),
        (
            ["streaming=true", "validation=val.csv", "train_size=10"],
            "data.train_size: got 10, but nothing can be drawn from a streamed training split; write null",
        ),
        (["shuffle_buffer=0"], "data.shuffle_buffer: got 0, expected a whole number, at least 1"),
    ],
)
def test_a_recipe_that_contradicts_itself(sections: list[str], expected: str) -> None:
    with pytest.raises(UserError) as caught:
        load_recipe("image-classification", sections)
    assert expected in str(caught.value)


def test_a_pair_or_stochastic_depth_makes_passes_differ_without_dropout() -> None:
    load_recipe("image-classification", ["dropout=0", "alpha=0", "drop_path=0.1"])
    load_recipe("image-classification", ["dropout=0", "alpha=0", "second=resnet18", "arms=plain,rdrop"])


STREAMED: dict[str, Any] = {
    "data": {"train": "train.csv", "validation": "val", "streaming": True, "shuffle_buffer": 10},
    "training": {"steps": 9, "eval_every_steps": 9, "epochs": 1},
}


@pytest.fixture
def tables(folder: Path) -> Path:
    """32 images in two tables and 8 to judge on."""
    files = listed(folder / "train.csv", folder / "train").read_text().splitlines(keepends=True)
    order = np.random.default_rng(0).permutation(len(files) - 1)
    (folder / "train.csv").write_text("".join([files[0], *(files[1 + i] for i in order)]))
    class_folders(folder / "val", 2, start=20)
    class_folders(folder / "more" / "val", 2, ["0", "1", "2", "3"], start=20)
    parquet(folder / "more" / "train.parquet", 8, structs=True)
    return folder


def of_parquet(**data: Any) -> dict[str, Any]:
    more = {"train": "more/train.parquet", "validation": "more/val", **data}
    return {**STREAMED, "data": STREAMED["data"] | more}


def test_a_streamed_split_has_the_examples_of_memory(tables: Path) -> None:
    for sections in (STREAMED, of_parquet()):
        off = {"data": sections["data"] | {"streaming": False}, "training": {"augmentation": "none"}}
        held_task, held = load(tables, **off)
        training = STREAMED["training"] | {"augmentation": "none"}
        task, splits = load(tables, data=sections["data"], training=training)
        assert task.names == held_task.names

        def sums(rows: Any) -> list[tuple[float, int]]:
            return [(float(row["pixel_values"].double().sum()), row["labels"]) for row in rows]

        streamed = sums(islice(splits.train, 32))
        assert sorted(streamed) == sorted(sums(held.train)) != streamed
        assert sums(splits.validation) == sums(held.validation)
        assert sums(islice(load(tables, 1, data=sections["data"], training=training)[1].train, 32)) != streamed
        assert sums(islice(load(tables, data=sections["data"], training=STREAMED["training"])[1].train, 32)) != streamed
        assert f"the 32 in {sections['data']['train']}, streamed, for training, 8 for val" in splits.description
        assert task.batches_per_epoch(splits.train) is None
    assert survey(recipe(tables, **STREAMED)).nominal_steps == 9
    assert survey(recipe(tables, **STREAMED)).notes == (
        "The training split is streamed and its order random within 10 images.",
    )


@pytest.mark.parametrize("second", [None, "test_efficientnet"])
def test_a_streamed_run_learns_and_is_repeated_bit_for_bit(tables: Path, second: str | None) -> None:
    sections = {**STREAMED, "training": {"steps": 24, "eval_every_steps": 24}}
    if second is not None:
        sections = {**sections, **PAIR}
    settings = recipe(tables, **sections)
    first, again = (train_run(settings, "rdrop", 0, 24, lambda _: None) for _ in range(2))
    assert (first.run.status, first.run.error, first.run.optimizer_steps) == ("finished", None, 24)
    assert lasting(first) == lasting(again)
    loss = first.run.curves["task_loss"].values
    assert np.mean(loss[-4:]) < np.mean(loss[:4])
    assert first.run.curves["divergence"].values[-1] > 0


def test_a_streamed_run_that_goes_on_in_a_later_epoch_ends_with_the_same_weights(tables: Path, tmp_path: Path) -> None:
    undisturbed, resumed = with_and_without_a_stop(tables, tmp_path, steps=11, stop=6, **STREAMED)  # 4 steps an epoch
    assert all(map(torch.equal, resumed.values(), undisturbed.values()))


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_the_command_trains_on_a_stream_and_the_model_is_used(
    tables: Path, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    sections = STREAMED if kind == "csv" else of_parquet()
    path = tables / "my.yaml"
    path.write_text(json.dumps(recipe(tables, **sections).model_dump(mode="json")))
    assert rdrop("train", path, "--out", tables / "run") == 0
    record = read_record(tables / "run")
    assert record.run.optimizer_steps == 9
    assert f"the 32 in {sections['data']['train']}, streamed" in record.data
    assert "order random within 10 images" in " ".join(record.notes)
    capsys.readouterr()
    assert rdrop("predict", tables / "run", tables / "val" / "sprout" / "20.png") == 0
    assert capsys.readouterr().out
    assert rdrop("evaluate", tables / "run") == 0
    assert rdrop("train", path, "training.steps=null", "--out", tables / "other") == 2
    assert "training.steps is null, but the length of streamed data is not known" in capsys.readouterr().err


def test_a_streamed_split_is_checked_before_it_is_trained_on(tables: Path) -> None:
    with (tables / "train.csv").open("a") as file:
        file.write("val/sprout/21.png,sprout\ntrain/sprout/99.png,sprout\n")
    assert message(tables, **STREAMED).startswith(
        "train.csv:35: image train/sprout/99.png: there is no file train/sprout/99.png"
    )
    (tables / "val" / "sprout" / "20.png").write_bytes(b"no image")
    (tables / "val" / "wilted").mkdir()
    (tables / "val" / "wilted" / "1.png").write_bytes(picture_file(2, 99))
    skipping = {**STREAMED, "data": STREAMED["data"] | {"on_bad_row": "skip"}}
    _, streamed = load(tables, **skipping)
    held_data = skipping["data"] | {"streaming": False}
    _, held = load(tables, data=held_data)
    # Counted once, though more than one pass was made, and told as without streaming.
    assert streamed.notes[:-1] == held.notes
    told = "\n".join(streamed.notes)
    assert "1 row of" in told
    assert "1 file of" in told
    assert "wilted was skipped" in told
    assert (
        "1 image of the validation split, and the same file in training, which makes the metrics look better than they "
        "are: val/sprout/21.png (val/sprout/21.png)." in told
    )
    list(islice(streamed.train, 70))
    assert len(streamed.validation) == 7


def test_what_cannot_be_streamed_is_refused(tables: Path) -> None:
    told = message(tables, data=STREAMED["data"] | {"train": "train"}, training=STREAMED["training"])
    assert told.startswith("data.train is train, a folder, whose classes come one after another")
    (tables / "train.csv").write_text("image,label\ntrain/sprout/1.png,sprout\n")
    assert "the label of every row is 'sprout' (column label); expected at least two" in message(tables, **STREAMED)
    (tables / "train.csv").write_text("image,label\n")
    assert "train.csv has no rows" in message(tables, **STREAMED)
    assert "there is no column 'photo'" in message(tables, data=STREAMED["data"] | {"image": "photo"})


def test_a_table_in_the_order_of_its_classes_is_told(tables: Path) -> None:
    listed(tables / "train.csv", tables / "train")
    _, splits = load(tables, data=STREAMED["data"] | {"shuffle_buffer": 7})
    assert splits.notes[-1] == (
        "8 images of train.csv that come one after another are all 'sprout', more than data.shuffle_buffer mixes with "
        "others; put the rows into random order."
    )
    assert len(load(tables, data=STREAMED["data"] | {"shuffle_buffer": 8})[1].notes) == 1


def test_a_stream_is_checked_and_trained_on_without_being_held(tables: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    CountedFile.most = CountedFile.alive = 0
    reads = 0

    def many(path: Path, columns: Any, **_: Any) -> Iterator[Row]:
        """More different images than there is room for."""
        nonlocal reads
        for number in range(300):
            reads += 1
            content = CountedFile(picture_file(number % 4, number, (8, 8)))
            yield Row(path, number, {"image": content, "label": number % 4})

    remembered: list[int] = []
    decode = Decoder.__call__

    def watched(self: Decoder, listed: ListedImage) -> Photo:
        photo = decode(self, listed)
        remembered.append(len(self._seen))
        return photo

    monkeypatch.setattr(image_tables, "read_table", many)
    monkeypatch.setattr(Decoder, "__call__", watched)
    _, splits = load(tables, **of_parquet())
    assert reads == 300  # one pass before training
    assert CountedFile.most <= 3
    assert max(remembered) == len(splits.validation) == 8
    assert sum(1 for _ in islice(splits.train, 650)) == 650
    assert reads > 900
    assert CountedFile.most <= 10 + 3  # the buffer, and what is read, drawn and handed out


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


def with_and_without_a_stop(
    folder: Path, where: Path, *, steps: int, stop: int, **sections: Any
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The weights of an undisturbed run, and of one that goes on from its checkpoint."""

    def trained(place: Path, resume: Path | None = None, **saving: Any) -> dict[str, Tensor]:
        task, splits = load(folder, **sections)
        model = build_model(task, 0)
        trainer = trainer_of(task, model, splits, place, steps, **saving)
        trainer.train(resume_from_checkpoint=str(resume) if resume else None)
        return model.state_dict()

    undisturbed = trained(where / "a")
    trained(where / "b", save_strategy="steps", save_steps=stop)
    return undisturbed, trained(where / "c", where / "b" / f"checkpoint-{stop}")


def test_a_run_that_goes_on_within_an_epoch_ends_with_the_same_weights(folder: Path, tmp_path: Path) -> None:
    settings = {"training": {"augmentation": "randaugment"}}
    undisturbed, resumed = with_and_without_a_stop(folder, tmp_path, steps=7, stop=4, **settings)  # 3 steps an epoch
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
