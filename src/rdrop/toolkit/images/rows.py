"""A split of images as a data set, and small pictures of it to look at."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from rdrop.toolkit.images.exhibits import captioned
from rdrop.toolkit.images.tables import Photo
from rdrop.toolkit.images.transforms import Transform, randomness_of
from rdrop.toolkit.summary import Picture


class ImageRows(Dataset[dict[str, Any]]):
    """Images with their class ids.

    Args:
        photos: The images.
        labels: Class id of each; None: they are not known.
        transform: From an image to the tensor of the network.
        seed: Seed of a random transform; what it does depends on the seed, the epoch and the row alone, so it is the
            same in every arm, for any number of workers, and after an interruption. None: it is not random.
    """

    def __init__(
        self, photos: Sequence[Photo], labels: Sequence[int] | None, transform: Transform, *, seed: int | None = None
    ) -> None:
        self.photos = photos
        self.labels = labels
        self.transform = transform
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Tells which epoch the next rows are read for."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.photos)

    def __getitem__(self, index: int) -> dict[str, Any]:
        pixels = transformed(self.photos[index].image(), self.transform, self.seed, self.epoch, index)
        row: dict[str, Any] = {"pixel_values": pixels}
        return row if self.labels is None else row | {"labels": self.labels[index]}

    def picture(self, index: int, caption: Sequence[str]) -> Picture:
        """The image of a row, at most 96 pixels wide and high, with its name and what else there is to say."""
        photo = self.photos[index]
        return captioned(photo.image(), [photo.name, *caption])


def transformed(image: Image.Image, transform: Transform, seed: int | None, epoch: int, index: int) -> Tensor:
    """What a network takes of a training image.

    Args:
        image: The image.
        transform: From it to the tensor `(3, H, W)`.
        seed: Seed of a random transform; None: it is not random.
        epoch: What is drawn depends on the seed, on this,
        index: and on the place of the image in the list of all of them.
    """
    with nullcontext() if seed is None else randomness_of(seed, epoch, index):
        return transform(image)
