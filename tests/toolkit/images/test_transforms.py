from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from pictures import picture
from rdrop.toolkit.images.files import BadImage
from rdrop.toolkit.images.transforms import Augmentation, CropMode, InputFormat, randomness_of

GREY = (0.5, 0.5, 0.5)


def form(mode: CropMode, size: tuple[int, int] = (16, 16), share: float = 1.0) -> InputFormat:
    return InputFormat(size, GREY, GREY, "bilinear", share, mode)


def augmentation(**changes: object) -> Augmentation:
    plain = {"kind": "light", "smallest_crop": 0.5, "flips": "none", "color_jitter": 0.0, "random_erasing": 0.0}
    return Augmentation(**(plain | changes))  # type: ignore[arg-type]


def halves(size: tuple[int, int] = (40, 20)) -> Image.Image:
    """Black on the left, white on the right."""
    pixels = np.zeros((size[1], size[0], 3), np.uint8)
    pixels[:, size[0] // 2 :] = 255
    return Image.fromarray(pixels)


def test_evaluation_scales_crops_and_normalizes() -> None:
    center = form("center").evaluation()(halves())
    assert center.shape == (3, 16, 16)
    assert center.min() == -1
    assert center.max() == 1
    # Of 40x20 pixels the centre keeps 20x20: the black half of that is the left one.
    assert (center[:, :, :7] == -1).all()
    assert (center[:, :, 9:] == 1).all()


def test_squash_keeps_all_and_border_pads_with_the_mean() -> None:
    corner = Image.new("RGB", (40, 20))
    corner.putpixel((0, 0), (255, 255, 255))
    assert form("squash").evaluation()(corner)[:, 0, 0].max() > form("squash").evaluation()(corner)[:, 8, 8].max()
    bordered = form("border").evaluation()(Image.new("RGB", (40, 20)))
    assert bordered[:, 0].abs().max() < 0.01  # grey
    assert (bordered[:, 8] == -1).all()


@pytest.mark.parametrize("mode", ["center", "squash", "border"])
@pytest.mark.parametrize("size", [(97, 61), (33, 80), (16, 16), (9, 12)])
def test_what_is_kept_in_memory_gives_the_same_tensor(mode: CropMode, size: tuple[int, int]) -> None:
    target = form(mode, share=0.8)
    image = picture(1, 5, size)
    held = target.shrinker()(image)
    assert held.width * held.height <= image.width * image.height
    assert torch.equal(target.evaluation()(held), target.evaluation()(image))


def test_a_large_image_is_held_small_and_a_small_one_is_not_enlarged() -> None:
    shrink = form("center", share=0.8).shrinker()
    assert shrink(picture(0, 0, (300, 200))).size == (30, 20)
    assert shrink(picture(0, 0, (12, 10))).size == (12, 10)


def test_an_image_of_impossible_proportions_is_refused() -> None:
    with pytest.raises(BadImage, match="it has 1 x 900 pixels, expected sides of at most 100 to 1"):
        form("center").shrinker()(Image.new("RGB", (1, 900)))


def test_augmentation_none_is_the_transform_of_evaluation() -> None:
    image = picture(2, 1)
    transform = form("center").training(augmentation(kind="none"))
    assert torch.equal(transform(image), form("center").evaluation()(image))


def sample(target: InputFormat, image: Image.Image, **changes: object) -> list[Tensor]:
    transform = target.training(augmentation(**changes))
    found = []
    for number in range(12):
        with randomness_of(7, number):
            found.append(transform(image))
    return found


def test_each_change_does_what_its_field_says() -> None:
    whole = {"smallest_crop": 1.0}
    square = halves((20, 20))
    left = [float(t[:, :, 0].mean()) for t in sample(form("center"), square, **whole, flips="horizontal")]
    assert {round(value) for value in left} == {-1, 1}  # mirrored or not
    assert {round(float(t[:, :, 0].mean())) for t in sample(form("center"), square, **whole)} == {-1}
    upright = square.rotate(-90)  # black above
    assert {round(float(t[:, 0].mean())) for t in sample(form("center"), upright, **whole, flips="both")} == {-1, 1}
    assert {round(float(t[:, 0].mean())) for t in sample(form("center"), upright, **whole, flips="horizontal")} == {-1}
    jittered = sample(form("center"), Image.new("RGB", (20, 20), (99, 99, 99)), **whole, color_jitter=0.5)
    assert len({float(t.mean()) for t in jittered}) > 6
    erased = sample(form("center"), Image.new("RGB", (20, 20)), **whole, random_erasing=0.5)
    assert 0 < sum(bool((t != -1).any()) for t in erased) < 12
    assert len({float(t.sum()) for t in sample(form("center"), picture(0, 0), kind="randaugment")}) == 12


def test_squash_comes_before_a_random_crop() -> None:
    striped = Image.fromarray(np.tile(np.array([[[0] * 3, [255] * 3]], np.uint8), (10, 20, 1)))  # 40x10
    [tensor, *_] = sample(form("squash", (10, 10)), striped, smallest_crop=1.0)
    # Squashed to 10x10, four columns become one: no stripe is left.
    assert tensor.abs().max() < 0.3


def test_randomness_depends_on_the_numbers_alone_and_leaves_no_trace() -> None:
    def draws() -> tuple[float, float, float]:
        return random.random(), float(np.random.rand()), float(torch.rand(()))

    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    expected = draws(), draws()
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    first = draws()
    with randomness_of(3, 0, 4):
        inside = draws()
    assert (first, draws()) == expected
    with randomness_of(3, 0, 4):
        assert draws() == inside
    with randomness_of(3, 1, 4):
        assert draws() != inside
    with pytest.raises(KeyError), randomness_of(5):
        raise KeyError
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    assert draws() == expected[0]
