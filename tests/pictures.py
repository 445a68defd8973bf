"""Small pictures on disk, whose classes a network can tell apart by their colour."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

STAGES = ("sprout", "seedling", "rosette", "heading")


def picture(label: int, number: int, size: tuple[int, int] = (24, 20)) -> Image.Image:
    """Noise around the colour of a class; no two are equal."""
    draws = np.random.default_rng([label, number])
    colour = np.array([40 + 60 * (label % 4), 200 - 50 * (label % 3), 90])
    pixels = colour + draws.normal(0, 25, (size[1], size[0], 3))
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def picture_file(label: int, number: int, size: tuple[int, int] = (24, 20)) -> bytes:
    """The same as a PNG file."""
    file = io.BytesIO()
    picture(label, number, size).save(file, "PNG")
    return file.getvalue()


def class_folders(folder: Path, count: int, classes: Sequence[str] = STAGES, start: int = 0) -> Path:
    """`<class>/<number>.png`, so many of each class."""
    for label, name in enumerate(classes):
        (folder / name).mkdir(parents=True)
        for number in range(start, start + count):
            (folder / name / f"{number}.png").write_bytes(picture_file(label, number))
    return folder


def listed(table: Path, images: Path) -> Path:
    """A CSV of the images in class folders, with the columns image and label and paths from the table's own folder."""
    files = sorted(images.glob("*/*.png"))
    with table.open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(["image", "label"])
        rows.writerows([[path.relative_to(table.parent).as_posix(), path.parent.name] for path in files])
    return table


def parquet(path: Path, count: int, *, structs: bool, classes: int = len(STAGES), start: int = 0) -> Path:
    """A Parquet table with image files, as bytes or as `datasets` writes them, and class ids."""
    numbers = [(label, number) for label in range(classes) for number in range(start, start + count)]
    files = [picture_file(*which) for which in numbers]
    images = [{"bytes": file, "path": None} for file in files] if structs else files
    labels = pa.array([label for label, _ in numbers], pa.int8())
    pq.write_table(pa.table({"image": images, "label": labels}), path)
    return path


class CountedFile(bytes):
    """The content of a file, of which it is known how many are held at a time."""

    alive: ClassVar[int] = 0
    most: ClassVar[int] = 0

    def __new__(cls, content: bytes) -> CountedFile:
        cls.alive += 1
        cls.most = max(cls.most, cls.alive)
        return super().__new__(cls, content)

    def __del__(self) -> None:
        type(self).alive -= 1
