from __future__ import annotations

import io
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from rdrop.errors import UserError
from rdrop.toolkit.images import files as image_files
from rdrop.toolkit.images.files import FORMATS, BadImage, decode_image, read_image


def encoded(image: Image.Image, form: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def photo(width: int = 6, height: int = 4) -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


@pytest.mark.parametrize("form", FORMATS)
def test_every_format_is_decoded_to_rgb(form: str) -> None:
    image = decode_image(encoded(photo(64, 48), form))
    assert (image.mode, image.size) == ("RGB", (64, 48))


def test_what_is_lossless_comes_back_pixel_for_pixel() -> None:
    assert np.array_equal(np.asarray(decode_image(encoded(photo()))), np.asarray(photo()))


@pytest.mark.parametrize("mode", ["1", "L", "P", "LA", "RGBA", "CMYK"])
def test_every_mode_becomes_rgb(mode: str) -> None:
    image = decode_image(encoded(photo().convert(mode), "TIFF"))
    assert (image.mode, image.size) == ("RGB", (6, 4))


def test_of_sixteen_bits_the_upper_eight_are_the_picture() -> None:
    values = np.array([[0, 255, 256, 32768, 65535]], dtype=np.uint16)
    for form in ("PNG", "TIFF"):
        pixels = np.asarray(decode_image(encoded(Image.fromarray(values), form)))
        assert pixels[0, :, 0].tolist() == [0, 0, 1, 128, 255]


def test_numbers_of_unknown_range_are_refused() -> None:
    image = Image.fromarray(np.ones((2, 2), dtype=np.float32))
    with pytest.raises(BadImage, match="32-bit numbers of unknown range; save it with 8 or 16 bits"):
        decode_image(encoded(image, "TIFF"))


def test_a_photo_is_turned_upright() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # taken with the camera turned by a quarter
    assert decode_image(encoded(photo(6, 4), "JPEG", exif=exif)).size == (4, 6)


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("share", [0.3, 0.8])
def test_an_image_that_was_cut_off_is_refused(form: str, share: float) -> None:
    whole = encoded(photo(64, 48), form)
    with pytest.raises(BadImage, match=r"it cannot be decoded, it may be cut off|it is not an image"):
        decode_image(whole[: int(share * len(whole))])


@pytest.mark.parametrize("content", [b"", b"name,label\n1.png,sprout\n", b"<svg xmlns='http://www.w3.org/2000/svg'/>"])
def test_what_is_no_image_is_refused_with_the_formats_that_are_read(content: bytes) -> None:
    with pytest.raises(BadImage, match="it is not an image of one of the formats JPEG, PNG"):
        decode_image(content)


def test_a_format_whose_decoder_starts_a_program_is_refused() -> None:
    with pytest.raises(BadImage, match="it is not an image of one of the formats"):
        decode_image(encoded(photo(), "EPS"))


def test_an_image_with_too_many_pixels_is_refused_before_it_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_files, "MOST_PIXELS", 20)
    with pytest.raises(BadImage, match="it has 6 x 4 pixels, expected at most 100 million"):
        decode_image(encoded(photo(6, 4)))


def test_a_file_of_a_few_bytes_that_promises_billions_of_pixels_is_refused() -> None:
    small = encoded(Image.new("1", (1, 1)))
    start, end = small.index(b"IHDR"), small.index(b"IHDR") + 17
    header = b"IHDR" + (60_000).to_bytes(4, "big") * 2 + small[start + 12 : end]
    bomb = small[:start] + header + zlib.crc32(header).to_bytes(4, "big") + small[end + 4 :]
    with pytest.raises(BadImage, match="it has far more than the 100 million pixels"):
        decode_image(bomb)


def test_a_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "plant.png"
    path.write_bytes(encoded(photo()))
    assert read_image(path).size == (6, 4)
    path.write_bytes(b"not an image")
    with pytest.raises(UserError, match=r"plant\.png: it is not an image"):
        read_image(path)
    with pytest.raises(UserError, match=r"missing\.png: No such file"):
        read_image(tmp_path / "missing.png")
    with pytest.raises(UserError, match="Is a directory"):
        read_image(tmp_path)
