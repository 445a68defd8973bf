"""Image files that may be anything: opened whole, or refused with a reason."""

from __future__ import annotations

import io
import warnings
from pathlib import Path

from PIL import Image, ImageOps, UnidentifiedImageError

from rdrop.errors import UserError

MOST_PIXELS = 100_000_000


class BadImage(ValueError):
    """What is wrong with an image, without its name."""


def decode_image(content: bytes) -> Image.Image:
    """The image in a file's bytes, turned upright and as RGB.

    Args:
        content: A whole image file, in any format that Pillow reads.

    Returns:
        An RGB image, decoded to the last pixel.

    Raises:
        BadImage: The bytes are no image, or only a part of one, or more pixels than 100 million.

    >>> file = io.BytesIO()
    >>> Image.new("L", (3, 2), 255).save(file, "PNG")
    >>> decode_image(file.getvalue()).size
    (3, 2)
    """
    try:
        with warnings.catch_warnings():
            # Pillow warns of what it can repair, such as broken metadata, and of large images, which are refused here.
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(content)) as image:
                if image.width * image.height > MOST_PIXELS:
                    raise BadImage(f"it has {image.width} x {image.height} pixels, expected at most 100 million")
                upright: Image.Image = ImageOps.exif_transpose(image)
                return upright.convert("RGB")
    except BadImage:
        raise
    except UnidentifiedImageError:
        raise BadImage("it is not an image, or of a format that Pillow does not read") from None
    except Exception as error:  # decoders raise whatever they like on damaged files
        raise BadImage(f"it cannot be decoded, it may be cut off: {error}") from None


def read_image(path: Path) -> Image.Image:
    """The image of a file.

    Raises:
        UserError: The file cannot be read, or is no image; the message names it.
    """
    try:
        return decode_image(path.read_bytes())
    except BadImage as error:
        raise UserError(f"{path}: {error}") from None
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from None
