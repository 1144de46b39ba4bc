"""Geometric augmentation: same size, its own randomness only, background kept, and off when told so."""

import pytest
import torch
from torch import Tensor

from cn_clip.clip.augment.geometric import Options, build
from cn_clip.errors import ConfigError

STILL = Options(
    rotate_degrees=0, scale_min=1, scale_max=1, shift=0, brightness=0, contrast=0, saturation=0, hue=0, flip=0
)


@pytest.fixture(name="picture_3HW")
def make_picture() -> Tensor:
    """A coloured square on white, 20 x 28."""
    picture = torch.full((3, 20, 28), 255, dtype=torch.uint8)
    picture[:, 6:14, 10:18] = torch.tensor([200, 40, 90], dtype=torch.uint8)[:, None, None]
    return picture


def test_keeps_size_and_type_and_leaves_the_input_alone(picture_3HW: Tensor) -> None:
    before = picture_3HW.clone()
    augmented = build(Options(hue=0.1, shear_degrees=5, flip=0.5))(picture_3HW)
    assert (augmented.shape, augmented.dtype) == (picture_3HW.shape, torch.uint8)
    assert torch.equal(picture_3HW, before)


def test_is_a_function_of_the_global_generator(picture_3HW: Tensor) -> None:
    operation = build(Options())
    torch.manual_seed(5)
    first, second = operation(picture_3HW), operation(picture_3HW)
    torch.manual_seed(5)
    assert torch.equal(operation(picture_3HW), first)
    assert not torch.equal(first, second)


def test_does_nothing_when_all_ranges_are_empty(picture_3HW: Tensor) -> None:
    assert torch.equal(build(STILL)(picture_3HW), picture_3HW)


@pytest.mark.parametrize(
    "options", [Options(rotate_degrees=45), Options(shift=0.3), Options(scale_max=0.5, scale_min=0.5)]
)
def test_fills_with_the_colour_of_the_corners(picture_3HW: Tensor, options: Options) -> None:
    moved = build(Options(**{**vars(options), "brightness": 0, "contrast": 0, "saturation": 0}))(picture_3HW)
    assert (moved >= 40 - 1).all()  # no black edge
    assert moved[:, 0, 0].tolist() == [255, 255, 255]


def test_draws_as_many_numbers_whatever_the_options(picture_3HW: Tensor) -> None:
    """So that turning one range off leaves the others' numbers as they were."""
    after = []
    for options in (STILL, Options(), Options(hue=0.2, flip=1.0)):
        torch.manual_seed(1)
        build(options)(picture_3HW)
        after.append(torch.rand(()).item())
    assert len(set(after)) == 1


def test_flip_mirrors(picture_3HW: Tensor) -> None:
    mirrored = build(Options(**{**vars(STILL), "flip": 1.0}))(picture_3HW)
    assert torch.equal(mirrored, picture_3HW.flip(-1))


@pytest.mark.parametrize("options", [Options(scale_min=1.3), Options(scale_min=0), Options(hue=0.6)])
def test_impossible_ranges_are_refused(options: Options) -> None:
    with pytest.raises(ConfigError, match=r"augment\."):
        build(options)
