"""Image files that may be anything: opened whole, or refused with a reason."""

from __future__ import annotations

import io
import warnings
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from rdrop.errors import UserError

MOST_PIXELS = 100_000_000
FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF", "PPM", "JPEG2000", "AVIF")
"""What photos are kept in; Pillow knows others, some of which start a program to decode a file."""


class BadImage(ValueError):
    """What is wrong with an image, without its name."""


def decode_image(content: bytes) -> Image.Image:
    """The image in a file's bytes, turned upright and as RGB.

    Args:
        content: A whole image file, in one of the formats of `FORMATS`. Of 16 bits the upper eight count.

    Returns:
        An RGB image, decoded to the last pixel.

    Raises:
        BadImage: The bytes are no image, or only a part of one, or more pixels than 100 million, or pixels of unknown
            range.

    >>> file = io.BytesIO()
    >>> Image.new("L", (3, 2), 255).save(file, "PNG")
    >>> decode_image(file.getvalue()).size
    (3, 2)
    """
    try:
        with warnings.catch_warnings():
            # Pillow warns of what it can repair, such as broken metadata, and of large images, which are refused here.
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(content), formats=_formats()) as image:
                if image.width * image.height > MOST_PIXELS:
                    raise BadImage(f"it has {image.width} x {image.height} pixels, expected at most 100 million")
                upright: Image.Image = ImageOps.exif_transpose(image)
                return _as_rgb(upright, image.format)
    except BadImage:
        raise
    except Image.DecompressionBombError:
        raise BadImage("it has far more than the 100 million pixels that are expected at most") from None
    except UnidentifiedImageError:
        raise BadImage(f"it is not an image of one of the formats {', '.join(FORMATS)}") from None
    except Exception as error:  # decoders raise whatever they like on damaged files
        raise BadImage(f"it cannot be decoded, it may be cut off: {error}") from None


@cache
def _formats() -> tuple[str, ...]:
    """Those of the formats that this build of Pillow knows."""
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def _as_rgb(image: Image.Image, form: str | None) -> Image.Image:
    """The image as RGB; Pillow itself would cut whatever is above 255 off."""
    if image.mode.startswith("I;16") or (image.mode == "I" and form in ("PNG", "PPM")):
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    elif image.mode in ("I", "F"):
        raise BadImage("its pixels are 32-bit numbers of unknown range; save it with 8 or 16 bits")
    return image.convert("RGB")


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
