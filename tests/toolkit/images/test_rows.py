from __future__ import annotations

import io
import pickle
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from pictures import picture_file
from rdrop.toolkit.images.rows import ImageRows
from rdrop.toolkit.images.tables import Decoder, ListedImage, Photo
from rdrop.toolkit.images.transforms import Augmentation, InputFormat

FORM = InputFormat((16, 16))
LIGHT = Augmentation("light", 0.3, "horizontal", 0.0, 0.0)


def photos(count: int, size: tuple[int, int] = (40, 30)) -> list[Photo]:
    decode = Decoder(FORM, keep=True)
    table = Path("train.parquet")
    return [decode(ListedImage(f"{i}.png", "a", picture_file(0, i, size), table, i)) for i in range(count)]


def rows(seed: int | None) -> ImageRows:
    return ImageRows(photos(5), [0, 1, 0, 1, 1], FORM.training(LIGHT), seed=seed)


def test_a_row_has_pixels_and_a_label_and_an_unlabelled_one_pixels_alone() -> None:
    row = rows(0)[3]
    assert row["pixel_values"].shape == (3, 16, 16)
    assert row["labels"] == 1
    assert ImageRows(photos(2), None, FORM.evaluation())[1].keys() == {"pixel_values"}


def test_augmentation_is_decided_by_seed_epoch_and_row() -> None:
    first, again, other = rows(3), rows(3), rows(4)
    seen = first[2]["pixel_values"]
    torch.rand(5)
    assert torch.equal(again[2]["pixel_values"], seen)
    assert not torch.equal(other[2]["pixel_values"], seen)
    first.set_epoch(1)
    assert not torch.equal(first[2]["pixel_values"], seen)
    first.set_epoch(0)
    assert torch.equal(first[2]["pixel_values"], seen)


def test_augmentation_is_the_same_in_worker_processes() -> None:
    def epoch(workers: int) -> torch.Tensor:
        loader = DataLoader(
            rows(3), batch_size=2, num_workers=workers, multiprocessing_context="fork" if workers else None
        )
        return torch.cat([batch["pixel_values"] for batch in loader])

    assert torch.equal(epoch(2), epoch(0))


def test_rows_travel_to_a_process_that_is_not_a_copy() -> None:
    sent = pickle.loads(pickle.dumps(rows(3)))
    assert torch.equal(sent[2]["pixel_values"], rows(3)[2]["pixel_values"])


@pytest.mark.parametrize(("size", "kind", "shown"), [((200, 120), "JPEG", (32, 20)), ((20, 10), "PNG", (20, 10))])
def test_a_picture_to_look_at_is_small(size: tuple[int, int], kind: str, shown: tuple[int, int]) -> None:
    big = InputFormat((96, 96))
    decode = Decoder(big, keep=True)
    photo = decode(ListedImage("a/1.png", "a", picture_file(0, 1, size), Path("a")))
    picture = ImageRows([photo], [0], big.evaluation()).picture(0, ["b: 3%"])
    assert picture.caption == ["a/1.png", "b: 3%"]
    with Image.open(io.BytesIO(picture.image)) as image:
        assert image.format == kind
        assert max(image.size) == (96 if kind == "JPEG" else 20)
        assert image.size[0] / image.size[1] == pytest.approx(size[0] / size[1], rel=0.02)
