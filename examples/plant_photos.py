"""Photos and the list of them: a CSV with the columns `image` (a path from the folder of the CSV) and `label`."""

from __future__ import annotations

import csv
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

Array = np.ndarray[Any, Any]
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, per channel
PAUSE = 5.0  # seconds between lines that tell how far it is


class Photos:
    """The photos of a list, read once and kept in memory: 5,000 of 256x256 pixels take 1 GB.

    Args:
        table: The list.
        size: Pixels of a side.
        limit: Take so many alone, drawn with the seed, of each class the same share, and two if possible.
        seed: For the limit.
        classes: Names in the order of class ids; none: those of the list, sorted.

    Attributes:
        pixels: `(N, size, size, 3)`, 0..255.
        labels: Class ids `(N,)`.
        classes: Names.
    """

    def __init__(
        self, table: Path, size: int, limit: int | None = None, seed: int = 0, classes: Sequence[str] = ()
    ) -> None:
        rows = read_list(table)
        if limit is not None:
            sizes, drawn = Counter(label for _, label, _ in rows), Counter[str]()
            shares = []
            for index in np.random.default_rng(seed).permutation(len(rows)):
                label = rows[index][1]
                drawn[label] += 1
                shares.append((drawn[label] / sizes[label] if drawn[label] > 2 else 0.0, index))
            rows = [rows[index] for index in sorted(index for _, index in sorted(shares)[:limit])]
        self.classes = list(classes) or sorted({label for _, label, _ in rows})
        if unknown := sorted({label for _, label, _ in rows} - set(self.classes)):
            raise ValueError(f"{table}: label {unknown[0]!r} is none of the classes {', '.join(self.classes)}")
        self.pixels = np.empty((len(rows), size, size, 3), np.uint8)
        self.labels = np.array([self.classes.index(label) for _, label, _ in rows])
        told = time.monotonic()
        for index, (path, _, row) in enumerate(rows):
            self.pixels[index] = read_photo(path, size, row)
            if time.monotonic() > told + PAUSE:
                told = time.monotonic()
                print(f"{index + 1} of {len(rows)} images are read", flush=True)

    def batch(self, indices: Array) -> tuple[Array, Array]:
        """Images `(B, 3, size, size)`, normalised as is usual for ImageNet, and class ids `(B,)`."""
        images = (self.pixels[indices] / 255 - MEAN) / DEVIATION
        return images.transpose(0, 3, 1, 2).astype(np.float32), self.labels[indices]


def read_list(table: Path) -> list[tuple[Path, str, str]]:
    """Path, label and name of each row, `FILE, line N`.

    Raises:
        ValueError: A column is missing, or a row has no label, or an image that is not there or outside of the folder.
    """
    folder, found = table.parent.resolve(), []
    with table.open(newline="", encoding="utf-8-sig") as file:
        rows = csv.DictReader(file)
        if missing := {"image", "label"} - set(rows.fieldnames or ()):
            raise ValueError(f"{table} has no column {min(missing)!r}; expected a first line with image,label")
        for row in rows:
            name, image, label = f"{table}, line {rows.line_num}", row["image"] or "", (row["label"] or "").strip()
            path = (folder / image).resolve()
            if not image or not label:
                raise ValueError(f"{name}: {'image' if not image else 'label'} is empty")
            if not path.is_relative_to(folder):
                raise ValueError(f"{name}: image is {image!r}, which leaves the folder of the list; copy it in there")
            if not path.is_file():
                raise ValueError(f"{name}: there is no file {path}; paths start at the folder of the list")
            found.append((path, label, name))
    if not found:
        raise ValueError(f"{table} lists no images")
    return found


def read_photo(path: Path, size: int, row: str) -> Array:
    """RGB `(size, size, 3)`, the whole photo squeezed into a square."""
    try:
        with Image.open(path) as file:
            photo = ImageOps.exif_transpose(file).convert("RGB")  # as it was held, not as it was stored
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(
            f"{row}: {path.name} cannot be read as an image ({error}); replace it or leave it out"
        ) from None
    return np.asarray(photo.resize((size, size), Image.Resampling.BILINEAR))


def split(labels: Array, seed: int, classes: Sequence[str]) -> tuple[Array, Array]:
    """Indices to train on and to validate on: of each class a tenth, one at least, drawn with the seed."""
    held: list[int] = []
    for label in range(len(classes)):
        members = np.random.default_rng([seed, label]).permutation(np.flatnonzero(labels == label))
        if len(members) < 2:
            raise ValueError(f"class {classes[label]!r} has {len(members)} image; expected 2 at least: one is held out")
        held.extend(members[: max(1, round(len(members) / 10))])
    return np.setdiff1d(np.arange(len(labels)), held), np.sort(held)
