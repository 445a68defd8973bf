"""Images that say more about a classifier than a number does."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.special import softmax

from rdrop.toolkit.summary import Gallery, Picture

WORST = 12  # images that are shown
THUMBNAIL = 96  # pixels of the longer side
PIXEL_ART = 64  # smaller images are few bytes without any loss


def worst_images(
    logits: NDArray[np.floating[Any]],
    labels: NDArray[np.integer[Any]],
    names: Sequence[str],
    picture: Callable[[int, list[str]], Picture],
) -> Gallery:
    """The images whose right class has the lowest probability.

    Args:
        logits: Unnormalised log-probabilities `(N, C)`.
        labels: Class ids `(N,)` in 0..C-1.
        names: Names of the C classes.
        picture: Makes the picture of an image, by its number in 0..N-1, with the given lines below it.

    Returns:
        Up to 12 of them, the worst first, with the right class and the most probable one.

    >>> logits, labels = np.log([[0.8, 0.2], [0.6, 0.4]]), np.array([0, 1])
    >>> shown = worst_images(logits, labels, ["sprout", "rosette"], lambda i, lines: Picture(image=b"", caption=lines))
    >>> [picture.caption for picture in shown.pictures]
    [['rosette: 40.0%', 'sprout: 60.0%'], ['sprout: 80.0%', 'sprout: 80.0%']]
    """
    probabilities = softmax(logits.astype(np.float64), axis=-1)
    right = np.take_along_axis(probabilities, labels[:, None], axis=-1)[:, 0]
    return Gallery(
        title="Images that were classified worst",
        reading=f"The {min(WORST, len(labels))} images whose right class got the lowest probability, the lowest "
        "first, with the right class and the most probable one.",
        pictures=[
            picture(
                int(i),
                [
                    f"{names[labels[i]]}: {100 * right[i]:.1f}%",
                    f"{names[probabilities[i].argmax()]}: {100 * probabilities[i].max():.1f}%",
                ],
            )
            for i in np.argsort(right, kind="stable")[:WORST]
        ],
    )


def captioned(image: Image.Image, caption: Sequence[str]) -> Picture:
    """An image, at most 96 pixels wide and high, with what there is to say about it.

    >>> captioned(Image.new("L", (8, 8)), ["3: 12.0%"]).image[1:4]
    b'PNG'
    """
    small = max(image.size) <= PIXEL_ART
    image.thumbnail((THUMBNAIL, THUMBNAIL))
    file = io.BytesIO()
    image.save(file, "PNG" if small else "JPEG")
    return Picture(image=base64.b64encode(file.getvalue()), caption=list(caption))
