from __future__ import annotations

import pickle
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from pictures import CountedFile, class_folders, listed, picture_file
from rdrop.errors import UserError
from rdrop.toolkit.data.file_data import TableData
from rdrop.toolkit.data.rows import BadRows, Policy
from rdrop.toolkit.images.rows import ImageRows
from rdrop.toolkit.images.streaming import Contents, StreamedImages, shuffled
from rdrop.toolkit.images.tables import Decoder, ListedImage, labelled_photos, listed_images
from rdrop.toolkit.images.transforms import Augmentation, InputFormat

FORM = InputFormat((16, 16))
RANDOM = Augmentation("light", 0.3, "horizontal", 0.0, 0.0)
IDS = {"a": 0, "b": 1, "c": 2}


def known(label: str, _: str) -> str:
    return label


def listing(folder: Path) -> Callable[[BadRows], Iterator[ListedImage]]:
    """12 images of three classes in a table."""
    if not (folder / "t.csv").exists():
        listed(folder / "t.csv", class_folders(folder / "all", 4, list(IDS)))
    return partial(listed_images, folder / "t.csv", TableData(folder=str(folder)), ("image", "label"), known)


def stream(
    images: Callable[[BadRows], Iterator[ListedImage]],
    *,
    seed: int | None = 3,
    order_seed: int = 0,
    buffer: int = 5,
    policy: Policy = "fail",
) -> StreamedImages:
    return StreamedImages(
        images,
        IDS,
        FORM.evaluation() if seed is None else FORM.training(RANDOM),
        FORM.shrinker(),
        policy=policy,
        buffer=buffer,
        batch_size=4,
        order_seed=order_seed,
        seed=seed,
    )


def first(rows: StreamedImages, count: int) -> list[tuple[int, Tensor]]:
    return [(row["labels"], row["pixel_values"]) for row in islice(rows, count)]


def equal(one: list[tuple[int, Tensor]], other: list[tuple[int, Tensor]]) -> bool:
    return all(a[0] == b[0] and torch.equal(a[1], b[1]) for a, b in zip(one, other, strict=True))


def test_shuffled_items_come_once_in_an_order_that_is_decided_by_the_generator() -> None:
    def order(seed: int, buffer: int) -> list[int]:
        return list(shuffled(range(100), buffer, np.random.default_rng(seed)))

    assert sorted(order(0, 10)) == list(range(100)) != order(0, 10)
    assert order(0, 10) == order(0, 10) != order(1, 10)
    assert order(0, 1) == list(range(100))
    assert order(0, 10)[0] < 10  # one of those that wait when the buffer is full
    assert sorted(order(0, 1000)) == list(range(100))
    assert order(0, 1000) != order(1, 1000)
    firsts = Counter(order(seed, 4)[0] for seed in range(400))
    assert sorted(firsts) == [0, 1, 2, 3]
    assert min(firsts.values()) > 60


def test_no_more_than_the_buffer_is_held_and_decoded_is_what_is_handed_out(monkeypatch: pytest.MonkeyPatch) -> None:
    CountedFile.most = CountedFile.alive = 0
    read = decoded = 0
    content = picture_file(0, 0)
    shrink = FORM.shrinker()

    def images(_: BadRows) -> Iterator[ListedImage]:
        nonlocal read
        for row in range(300):
            read += 1
            yield ListedImage(f"row {row}", "a", CountedFile(content), Path("t.parquet"), row)

    def counted(image: Any) -> Any:
        nonlocal decoded
        decoded += 1
        return shrink(image)

    rows = stream(images, buffer=7)
    monkeypatch.setattr(rows, "shrink", counted)
    for handed_out, _ in enumerate(islice(rows, 650), 1):
        assert decoded == handed_out
        assert read - handed_out <= 7
    assert read > 600  # the third epoch
    assert CountedFile.most <= 7 + 3  # beside them what is read, what is drawn and what was handed out


def test_every_epoch_has_the_rows_of_memory_in_an_order_of_its_own(tmp_path: Path) -> None:
    images = listing(tmp_path)
    bad_rows = BadRows()
    photos = list(labelled_photos(images(bad_rows), Decoder(FORM, keep=True), bad_rows))
    held = ImageRows(photos, [IDS[photo.label] for photo in photos], FORM.training(RANDOM), seed=3)
    orders: list[list[int]] = []
    passing = iter(stream(images))
    for epoch in range(3):
        held.set_epoch(epoch)
        memory = [held[index] for index in range(12)]
        order: list[int] = []
        for row in islice(passing, 12):
            # Augmented as in memory: what is drawn depends on the seed, the epoch and the image.
            [index] = [i for i, same in enumerate(memory) if torch.equal(row["pixel_values"], same["pixel_values"])]
            assert row["labels"] == memory[index]["labels"]
            order.append(index)
        assert sorted(order) == list(range(12))
        orders.append(order)
    assert orders[0] != orders[1] != orders[2] != orders[0]


def test_seeds_decide_the_order_and_what_is_random_in_the_images(tmp_path: Path) -> None:
    images = listing(tmp_path)
    rows = first(stream(images), 20)
    torch.rand(3)
    assert equal(first(stream(images), 20), rows)
    assert not equal(first(stream(images, order_seed=1), 20), rows)
    other = first(stream(images, seed=4), 20)
    assert [label for label, _ in other] == [label for label, _ in rows]
    assert not equal(other, rows)


def test_worker_processes_share_the_images_and_change_nothing(tmp_path: Path) -> None:
    def rows(workers: int) -> list[tuple[int, Tensor]]:
        loader = DataLoader(
            stream(listing(tmp_path)),
            batch_size=4,
            num_workers=workers,
            multiprocessing_context="fork" if workers else None,
        )
        batches = list(islice(loader, 8))
        return list(
            zip(
                torch.cat([b["labels"] for b in batches]).tolist(),
                torch.cat([b["pixel_values"] for b in batches]),
                strict=True,
            )
        )

    alone = rows(0)
    assert len(alone) == 32
    assert equal(rows(1), alone)
    assert equal(rows(2), alone)


def test_a_stream_travels_to_a_process_that_is_not_a_copy(tmp_path: Path) -> None:
    rows = stream(listing(tmp_path))
    assert equal(first(pickle.loads(pickle.dumps(rows)), 15), first(rows, 15))


def test_an_image_that_went_bad_ends_the_reading_or_is_left_out(tmp_path: Path) -> None:
    images = listing(tmp_path)
    (tmp_path / "all" / "b" / "2.png").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"t\.csv:8: image all/b/2\.png: it is not an image.*Repair the row"):
        first(stream(images), 12)
    labels = [label for label, _ in first(stream(images, policy="skip"), 22)]
    for epoch in (labels[:11], labels[11:]):
        assert Counter(epoch) == {0: 4, 1: 3, 2: 4}


def test_a_stream_without_any_image_left_ends(tmp_path: Path) -> None:
    images = listing(tmp_path)
    rows = iter(stream(images, policy="skip"))
    list(islice(rows, 12))
    for file in (tmp_path / "all").glob("*/*.png"):
        file.unlink()
    with pytest.raises(UserError, match=r"no row of .*t\.csv can be used|no training image can be used any more"):
        next(rows)


def test_what_is_in_a_split_is_found_while_it_passes(tmp_path: Path) -> None:
    def image(label: str, number: int) -> ListedImage:
        return ListedImage(f"{label}{number}", label, picture_file(0, number), Path("t.parquet"), number)

    images = [image("a", 0), image("b", 1), image("b", 2), image("b", 3), image("a", 1), image("a", 1)]
    photos = list(labelled_photos(images, Decoder(FORM, keep=False, remember=False), BadRows()))
    contents = Contents.of(iter(photos), {photos[2].digest, photos[4].digest})
    assert contents.counts == {"a": 3, "b": 3}
    assert contents.longest_run == (3, "b")
    assert len({photo.digest for photo in contents.repeated}) == len(contents.repeated) == 2
