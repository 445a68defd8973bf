"""From a picture to what a network takes: timm's own transforms, and random ones that depend on nothing but seeds."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.random.mtrand import get_bit_generator, set_bit_generator
from PIL import Image
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.data.transforms_factory import create_transform
from torch import Tensor
from torchvision.transforms import Compose  # type: ignore[import-untyped]

from rdrop.toolkit.images.files import BadImage

Transform = Callable[[Image.Image], Tensor]
CropMode = Literal["center", "squash", "border"]
AugmentationKind = Literal["none", "light", "randaugment"]
Flips = Literal["none", "horizontal", "both"]

LONGEST_TO_SHORTEST = 100
RANDAUGMENT = "rand-m9-mstd0.5-mmax9-inc1"  # without mmax9, timm may ask Pillow for 0 bits, which it refuses
RATIO = (3 / 4, 4 / 3)  # sides of a random crop, as timm and torchvision have it


@dataclass(frozen=True)
class Augmentation:
    """What is changed at random in a training image; the fields of the recipe's section `training`."""

    kind: AugmentationKind
    smallest_crop: float
    flips: Flips
    color_jitter: float
    random_erasing: float


@dataclass(frozen=True)
class InputFormat:
    """What a network wants an image to be, in the words of timm's `pretrained_cfg`."""

    size: tuple[int, int]
    """Height and width in pixels."""
    mean: tuple[float, ...] = IMAGENET_DEFAULT_MEAN
    std: tuple[float, ...] = IMAGENET_DEFAULT_STD
    interpolation: str = "bicubic"
    crop_pct: float = 1.0
    """Share of the resized image's side that the crop keeps."""
    crop_mode: str = "center"

    def evaluation(self) -> Transform:
        """The transform of evaluation, from an RGB image to a tensor `(3, H, W)`.

        >>> InputFormat((8, 8)).evaluation()(Image.new("RGB", (30, 20))).shape
        torch.Size([3, 8, 8])
        """
        transform: Transform = create_transform(
            (3, *self.size), crop_pct=self.crop_pct, crop_mode=self.crop_mode, **self._colors()
        )
        return transform

    def training(self, augmentation: Augmentation) -> Transform:
        """The transform of training; without augmentation it is that of evaluation."""
        if augmentation.kind == "none":
            return self.evaluation()
        changes: dict[str, Any] = {
            "scale": (augmentation.smallest_crop, 1.0),
            "ratio": RATIO,
            "hflip": 0.0 if augmentation.flips == "none" else 0.5,
            "vflip": 0.5 if augmentation.flips == "both" else 0.0,
            "color_jitter": augmentation.color_jitter or None,
            "auto_augment": RANDAUGMENT if augmentation.kind == "randaugment" else None,
            "re_prob": augmentation.random_erasing,
            "re_mode": "pixel",
        }
        transform = create_transform((3, *self.size), is_training=True, **changes, **self._colors())
        # Crops are otherwise taken from the picture in its own proportions.
        steps = [self._resize(), transform] if self.crop_mode == "squash" else [transform]
        composed: Transform = Compose(steps)
        return composed

    def shrinker(self) -> Shrinker:
        """The first step of evaluation, where it makes an image smaller."""
        return Shrinker(self._resize())

    def _resize(self) -> Callable[[Image.Image], Image.Image]:
        """The first step of evaluation, which the crop follows."""
        transform: Any = self.evaluation()
        resize: Callable[[Image.Image], Image.Image] = transform.transforms[0]
        return resize

    def _colors(self) -> dict[str, Any]:
        return {"interpolation": self.interpolation, "mean": self.mean, "std": self.std}


@dataclass(frozen=True)
class Shrinker:
    """Makes an image no larger than evaluation needs it, and leaves a small one as it is.

    What follows gives the same from the result as from the image itself: the step leaves its own results alone.

    Args:
        resize: The first step of evaluation.

    >>> shrink = InputFormat((8, 8), crop_pct=0.5).shrinker()
    >>> shrink(Image.new("RGB", (64, 32))).size, shrink(Image.new("RGB", (10, 10))).size
    ((32, 16), (10, 10))
    """

    resize: Callable[[Image.Image], Image.Image]

    def __call__(self, image: Image.Image) -> Image.Image:
        """The image or a smaller one.

        Raises:
            BadImage: It is so thin that the network would see nothing, and enlarged could fill the memory.
        """
        short, long = sorted(image.size)
        if short * LONGEST_TO_SHORTEST < long:
            raise BadImage(
                f"it has {image.width} x {image.height} pixels, expected sides of at most {LONGEST_TO_SHORTEST} to 1"
            )
        resized = self.resize(image)
        return resized if math.prod(resized.size) < math.prod(image.size) else image


@contextmanager
def randomness_of(*numbers: int) -> Iterator[None]:
    """Random numbers that depend on these numbers alone; afterwards all generators are as they were.

    Args:
        *numbers: For example a seed, an epoch and a row, each at least 0.

    >>> with randomness_of(0, 3):
    ...     first = random.random()
    >>> with randomness_of(0, 3):
    ...     random.random() == first
    True
    """
    # timm draws from all three. Numpy's generator is exchanged: copying its state takes longer than a transform.
    before = random.getstate(), get_bit_generator(), torch.get_rng_state()
    python, numpy, pytorch = map(int, np.random.SeedSequence(numbers).generate_state(3))
    random.seed(python)
    set_bit_generator(np.random.PCG64(numpy))
    torch.default_generator.manual_seed(pytorch)
    try:
        yield
    finally:
        random.setstate(before[0])
        set_bit_generator(before[1])
        torch.set_rng_state(before[2])
