from __future__ import annotations

import gzip
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray
from PIL import Image

from pictures import STAGES, class_folders, listed, parquet, picture, picture_file
from rdrop.errors import UserError
from rdrop.toolkit.data.file_data import TableData
from rdrop.toolkit.data.label_names import LabelNames
from rdrop.toolkit.data.rows import BadRows, Policy
from rdrop.toolkit.images import files as image_files
from rdrop.toolkit.images import tables as image_tables
from rdrop.toolkit.images.tables import (
    Decoder,
    Photo,
    labelled_photos,
    listed_images,
    repeated_images,
    unlabelled_photos,
    unused_files,
)
from rdrop.toolkit.images.transforms import InputFormat

FORM = InputFormat((16, 16))


def decoder(*, keep: bool = True) -> Decoder:
    return Decoder(FORM, keep=keep)


def read(path: Path, policy: Policy = "fail", names: LabelNames | None = None, **data: Any) -> tuple[list[Photo], str]:
    """The images of a split in the folder of the path, and what was skipped."""
    bad_rows = BadRows(policy)
    section = TableData.model_validate({"folder": str(path.parent)} | data)
    known: Callable[[str, str], str] = (lambda label, _: label) if names is None else names.known
    listing = listed_images(path, section, ("image", "label"), known, bad_rows)
    found = labelled_photos(listing, decoder(), bad_rows)
    return list(found), " ".join(bad_rows.sentences())


def failure(path: Path, policy: Policy = "fail", **data: Any) -> str:
    """The message about a split, with paths from its folder."""
    with pytest.raises(UserError) as caught:
        read(path, policy, **data)
    return str(caught.value).replace(f"{path.parent.resolve()}/", "").replace(f"{path.parent}/", "")


def pixels(photo: Photo) -> NDArray[np.uint8]:
    return np.asarray(photo.image())


def test_a_folder_of_classes_is_read_in_order_at_any_depth_without_hidden_files(tmp_path: Path) -> None:
    train = class_folders(tmp_path / "train", 2)
    (train / "sprout" / "old").mkdir()
    (train / "sprout" / "old" / "9.png").write_bytes(picture_file(0, 9))
    for hidden in (
        train / "sprout" / ".DS_Store",
        train / ".thumbnails" / "x.png",
        train / "sprout" / ".git" / "y.png",
    ):
        hidden.parent.mkdir(exist_ok=True)
        hidden.write_text("no image")
    (train / "labels.csv").write_text("image,label\n")
    found, skipped = read(train)
    assert [photo.label for photo in found] == ["heading"] * 2 + ["rosette"] * 2 + ["seedling"] * 2 + ["sprout"] * 3
    assert [photo.name for photo in found][-3:] == [
        "train/sprout/0.png",
        "train/sprout/1.png",
        "train/sprout/old/9.png",
    ]
    assert skipped == ""
    assert np.array_equal(pixels(found[-1]), np.asarray(FORM.shrinker()(picture(0, 9))))
    assert unused_files(train) == [f"Files beside the folders of the classes are not used: labels.csv in {train}."]
    assert unused_files(train / "labels.csv") == []


def test_a_table_names_images_from_its_own_folder(tmp_path: Path) -> None:
    images = class_folders(tmp_path / "photos" / "all", 2)
    table = listed(tmp_path / "photos" / "train.csv", images)
    found, _ = read(table, folder=str(tmp_path))
    assert [(photo.name, photo.label) for photo in found[:2]] == [
        ("photos/all/heading/0.png", "heading"),
        ("photos/all/heading/1.png", "heading"),
    ]
    assert np.array_equal(pixels(found[0]), np.asarray(FORM.shrinker()(picture(3, 0))))


@pytest.mark.parametrize("name", ["t.tsv", "t.txt", "t.jsonl", "t.csv.gz", "t.jsonl.gz"])
def test_every_kind_of_table(tmp_path: Path, name: str) -> None:
    class_folders(tmp_path, 1, ["a", "b"])
    rows = [("a/0.png", "a"), ("b/0.png", "b")]
    separator = {"tsv": "\t", "txt": ";"}.get(name.split(".")[1], ",")
    lines = [separator.join(row) for row in [("image", "label"), *rows]]
    if "jsonl" in name:
        lines = [json.dumps({"image": image, "label": label}) for image, label in rows]
    text = ("\n".join(lines) + "\n").encode()
    (tmp_path / name).write_bytes(gzip.compress(text) if name.endswith(".gz") else text)
    found, _ = read(tmp_path / name, delimiter=";" if name == "t.txt" else None)
    assert [(photo.name, photo.label) for photo in found] == rows


@pytest.mark.parametrize("structs", [False, True])
def test_parquet_holds_the_files(tmp_path: Path, structs: bool) -> None:
    found, _ = read(parquet(tmp_path / "t.parquet", 2, structs=structs))
    assert [photo.label for photo in found] == ["0", "0", "1", "1", "2", "2", "3", "3"]
    assert found[2].name == "t.parquet, row 3"
    assert np.array_equal(pixels(found[2]), np.asarray(FORM.shrinker()(picture(1, 0))))


def test_parquet_as_datasets_writes_it(tmp_path: Path) -> None:
    from datasets import ClassLabel, Dataset, Features
    from datasets import Image as ImageFeature

    features = Features({"image": ImageFeature(), "label": ClassLabel(names=["sprout", "rosette"])})
    written = Dataset.from_dict({"image": [picture(0, 0), picture(1, 0)], "label": [0, 1]}, features=features)
    written.to_parquet(tmp_path / "t.parquet")
    found, _ = read(tmp_path / "t.parquet")
    assert [photo.label for photo in found] == ["0", "1"]
    assert np.array_equal(pixels(found[1]), np.asarray(FORM.shrinker()(picture(1, 0))))


def test_parquet_may_hold_paths(tmp_path: Path) -> None:
    class_folders(tmp_path, 1, ["a"])
    images = pa.array([{"bytes": None, "path": "a/0.png"}], pa.struct({"bytes": pa.binary(), "path": pa.string()}))
    pq.write_table(pa.table({"image": images, "label": ["a"]}), tmp_path / "t.parquet")
    assert read(tmp_path / "t.parquet")[0][0].name == "a/0.png"


def test_labels_by_name_or_number_where_the_names_are_given(tmp_path: Path) -> None:
    class_folders(tmp_path, 1, ["a"])
    (tmp_path / "t.csv").write_text("image,label\na/0.png,1\na/0.png,sprout\n")
    names = LabelNames(STAGES, tmp_path / "classes.txt", numbered=True)
    assert [photo.label for photo in read(tmp_path / "t.csv", names=names)[0]] == ["seedling", "sprout"]
    (tmp_path / "t.csv").write_text("image,label\na/0.png,4\n")
    with pytest.raises(UserError, match=r"t\.csv:2: label: got the label '4', expected one of the 4 names"):
        read(tmp_path / "t.csv", names=names)


def broken(kind: str) -> bytes:
    """A file that is no usable image."""
    good = picture_file(0, 0, (64, 64))
    return {
        "empty": b"",
        "text": b"this is a note about plants, not a picture",
        "cut": good[: len(good) // 2],
        "head": good[:20],
        "thin": picture_file(0, 0, (2, 400)),
    }[kind]


REASONS = {
    "empty": "it is not an image",
    "text": "it is not an image",
    "cut": "it cannot be decoded, it may be cut off: ",
    "head": "it cannot be decoded, it may be cut off: ",
    "thin": "it has 2 x 400 pixels, expected sides of at most 100 to 1",
}


@pytest.mark.parametrize("kind", REASONS)
def test_a_file_that_is_no_image_is_named_with_its_row_or_skipped(tmp_path: Path, kind: str) -> None:
    class_folders(tmp_path / "train", 2, ["a", "b"])
    bad = tmp_path / "train" / "a" / "1.png"
    bad.write_bytes(broken(kind))
    message = failure(tmp_path / "train")
    assert message.startswith(f"train/a/1.png: {REASONS[kind]}")
    assert message.endswith("Repair the file, or set data.on_bad_row: skip to leave such files out.")
    found, skipped = read(tmp_path / "train", "skip")
    assert [photo.name for photo in found] == ["train/a/0.png", "train/b/0.png", "train/b/1.png"]
    assert skipped.startswith(f"1 file of {tmp_path / 'train' / 'a'} was skipped (data.on_bad_row: skip): 1.png: ")

    table = listed(tmp_path / "t.csv", tmp_path / "train")
    message = failure(table)
    assert message.startswith(f"t.csv:3: image train/a/1.png: {REASONS[kind]}")
    assert message.endswith("Repair the row, or set data.on_bad_row: skip to leave such rows out.")
    found, skipped = read(table, "skip")
    assert len(found) == 3
    assert skipped.startswith(f"1 row of {table} was skipped (data.on_bad_row: skip): line 3: image train/a/1.png: ")

    images = [picture_file(0, 0), broken(kind)]
    pq.write_table(pa.table({"image": images, "label": [0, 1]}), tmp_path / "t.parquet")
    assert failure(tmp_path / "t.parquet").startswith(f"t.parquet:2: image: {REASONS[kind]}")


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("a/leaf.jpg,a", "image a/leaf.jpg: there is no file a/leaf.jpg; check the path"),
        ("a/O.png,a", "image a/O.png: there is no file a/O.png; did you mean 0.png?"),
        ("a,a", "image a: a is a folder; expected a file"),
        ("pipe,a", "image pipe: pipe is neither a file nor a folder; expected a file"),
        (",a", "image: got the text '', expected the path of an image"),
        ("../t.csv,a", "image: the path '"),
        ("/etc/passwd,a", "image: the path '/etc/passwd' leads out of the data folder"),
        ("a/out.png,a", "image: the path '"),
        ("a/0.png,", "label: got the text '', expected a label: a word or a whole number"),
        ("a/0.png", "got 1 field, expected 2"),
    ],
)
def test_a_row_that_cannot_be_used_is_named(tmp_path: Path, row: str, reason: str) -> None:
    folder = tmp_path / "data"
    class_folders(folder, 1, ["a"])
    (tmp_path / "secret.png").write_bytes(picture_file(0, 3))
    (folder / "a" / "out.png").symlink_to(tmp_path / "secret.png")
    os.mkfifo(folder / "pipe")
    table = folder / "t.csv"
    table.write_text(f"image,label\na/0.png,a\n{row}\n")
    assert failure(table).startswith(f"t.csv:3: {reason}")
    if reason.endswith("'"):
        assert "leads out of the data folder" in failure(table)
    found, skipped = read(table, "skip")
    assert len(found) == 1
    assert skipped.startswith(f"1 row of {table} was skipped (data.on_bad_row: skip): line 3: ")


@pytest.mark.parametrize("value", [None, 3, {"image": "x"}, {"bytes": None, "path": None}, ["a"]])
def test_a_value_that_is_no_image_is_shown(tmp_path: Path, value: object) -> None:
    (tmp_path / "t.jsonl").write_text(json.dumps({"image": value, "label": "a"}) + "\n")
    message = failure(tmp_path / "t.jsonl")
    assert message.startswith("t.jsonl:1: image: got ")
    assert "expected the path of an image, or the bytes of its file" in message


def test_a_link_in_a_class_folder_that_leads_out_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    class_folders(folder / "train", 1, ["a"])
    class_folders(tmp_path / "elsewhere", 1, ["b"])
    (folder / "train" / "b").symlink_to(tmp_path / "elsewhere" / "b")
    message = failure(folder / "train", folder=str(folder))
    assert "leads out of the data folder" in message


def test_an_empty_class_folder_fails_or_is_left_out(tmp_path: Path) -> None:
    train = class_folders(tmp_path / "train", 1, ["a", "b"])
    (train / "c").mkdir()
    (train / "c" / ".keep").touch()
    assert failure(train) == (
        "train/c: the folder of a class is empty; put images into it, delete it, or set data.on_bad_row: skip to go "
        "without that class"
    )
    found, skipped = read(train, "skip")
    assert {photo.label for photo in found} == {"a", "b"}
    assert skipped.endswith("c: the folder of a class is empty.")


def test_a_folder_without_classes_and_one_without_usable_images(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "1.png").write_bytes(picture_file(0, 0))
    assert "holds no folder; expected one for each class, as in" in failure(tmp_path / "train")
    (tmp_path / "bad" / "a").mkdir(parents=True)
    (tmp_path / "bad" / "a" / "1.png").write_bytes(b"no")
    assert failure(tmp_path / "bad", "skip").startswith("nothing is left of bad: 1 file of ")


def test_a_film_among_the_images_does_not_fill_the_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_tables, "MOST_BYTES", 2**20)
    train = class_folders(tmp_path / "train", 1, ["a"])
    with (train / "a" / "film.mp4").open("wb") as file:
        file.truncate(2**21)
    assert failure(train).startswith("train/a/film.mp4: it has more than 1 MiB; expected an image")


def test_what_one_load_decoded_the_next_one_takes_and_a_changed_file_is_decoded_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "0.png"
    file.write_bytes(picture_file(0, 0))
    decoded: list[bytes] = []
    decode = image_files.decode_image

    def counted(content: bytes) -> Image.Image:
        decoded.append(content)
        return decode(content)

    monkeypatch.setattr(image_tables, "decode_image", counted)

    def load(form: InputFormat, *, keep: bool = True) -> NDArray[np.uint8]:
        opener = Decoder(form, keep=keep)
        [photo] = unlabelled_photos([file], opener)
        opener.finish()
        return pixels(photo)

    sizes = InputFormat((8, 9)), InputFormat((9, 8))
    first = load(sizes[0])
    assert np.array_equal(load(sizes[0]), first)
    assert len(decoded) == 1
    load(sizes[1])
    assert len(decoded) == 2
    load(sizes[0])  # the load before has taken its place
    assert len(decoded) == 3
    file.write_bytes(picture_file(2, 0))
    assert not np.array_equal(load(sizes[0]), first)
    assert len(decoded) == 4
    file.write_bytes(b"no image")
    with pytest.raises(UserError, match=r"0\.png: it is not an image"):
        load(sizes[0])


def test_without_cache_the_image_is_the_same_and_a_file_that_vanished_is_named(tmp_path: Path) -> None:
    file = tmp_path / "0.png"
    file.write_bytes(picture_file(0, 0, (99, 50)))
    [held] = unlabelled_photos([file], decoder())
    [lazy] = unlabelled_photos([file], decoder(keep=False))
    assert lazy.pixels is None
    assert np.array_equal(pixels(lazy), pixels(held))
    file.unlink()
    assert pixels(held).shape == (16, 31, 3)
    with pytest.raises(UserError, match=r"0\.png: there is no file"):
        lazy.image()


def test_images_to_predict_on_are_files_and_folders_at_any_depth(tmp_path: Path) -> None:
    class_folders(tmp_path / "new", 1, ["b", "a"])
    (tmp_path / "new" / ".hidden").write_text("x")
    single = tmp_path / "one.jpg"
    picture(1, 1).save(single)
    found = unlabelled_photos([single, tmp_path / "new"], decoder())
    assert [photo.name for photo in found] == [str(single), *(str(tmp_path / "new" / name / "0.png") for name in "ab")]
    single.write_text("no image")
    with pytest.raises(UserError, match=r"one\.jpg: it is not an image"):
        unlabelled_photos([single], decoder())
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"empty holds no file; expected images"):
        unlabelled_photos([tmp_path / "empty"], decoder())


def test_the_same_file_in_training_and_elsewhere_is_told(tmp_path: Path) -> None:
    train, _ = read(class_folders(tmp_path / "train", 3, ["a", "b"]))
    test, _ = read(class_folders(tmp_path / "test", 3, ["a", "b"], start=2))
    other, _ = read(class_folders(tmp_path / "other", 1, ["a"], start=9))
    assert repeated_images({"train": train, "validation": other, "test": test}) == [
        "2 images of the test split, and the same file in training, which makes the metrics look better than they are: "
        "test/a/2.png (train/a/2.png), test/b/2.png (train/b/2.png)."
    ]
