"""AutoAugment (arXiv:1805.09501) as the reference's `--use-augment` has it: crop, mirror, then one of 25 policies, by timm.

The operations draw from Python's generator and torch's; under equal seeds of both, mode `exact` gives the reference's
tensors, and mode `fast` makes the same crop and the same operations.

Shapes: 3 colours, H height, W width, S side of the square asked for.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from cn_clip.clip import transform
from cn_clip.clip.quick_operations import as_array, posterize_to_nothing, quick_policies
from cn_clip.errors import ConfigError

if TYPE_CHECKING:
    from timm.data.auto_augment import AutoAugment
    from timm.data.transforms import RandomResizedCropAndInterpolation
    from torchvision.transforms import Compose, RandomHorizontalFlip


@dataclass(frozen=True, kw_only=True)
class Options:
    policy: Literal["original", "originalr", "v0", "v0r", "3a"] = "original"
    """timm's name of the set of policies."""
    scale_min: float = 0.9
    """Smallest crop, as a share of the picture's area; its sides stand 3:4 to 4:3."""
    flip: float = 0.5
    """Share of pictures mirrored left to right; captions that name a side turn wrong."""


def build(options: Options) -> Callable[[Tensor], Tensor]:
    check(options)
    return partial(augment, options=options)


def check(options: Options) -> None:
    """ConfigError for a share that is none."""
    if not 0 < options.scale_min <= 1:
        raise ConfigError(
            f"data.augment.scale_min is {options.scale_min}: give a share of the area, above 0, at most 1"
        )
    if not 0 <= options.flip <= 1:
        raise ConfigError(f"data.augment.flip is {options.flip}: give a share of the pictures, 0 to 1")


def augment(picture_3SS: Tensor, options: Options) -> Tensor:
    """uint8 (3, S, S) of a square one of that size, cropped and augmented."""
    image_px = picture_3SS.shape[-1]
    draw_crop, finish = _quick_steps(options, image_px)
    pixels_SS3 = picture_3SS.permute(1, 2, 0).contiguous().numpy()
    return finish(transform.resize_uint8(transform.cropped(pixels_SS3, draw_crop), image_px))


@dataclass(frozen=True)
class AutoAugmentTransform:
    """Encoded picture -> augmented (3, S, S): normalised float32 in mode `exact`, uint8 in mode `fast`."""

    image_px: int
    mode: transform.Mode
    options: Options

    def __post_init__(self) -> None:
        check(self.options)

    def __call__(self, raw: bytes) -> Tensor:
        if self.mode == "exact":
            augmented: Tensor = pipeline(self.options, self.image_px)(transform.open_picture(raw))
            return augmented
        draw_crop, finish = _quick_steps(self.options, self.image_px)
        return finish(transform.fast_square(raw, self.image_px, draw_crop))


@cache
def pipeline(options: Options, image_px: int) -> Compose:
    """The reference's pipeline of a PIL picture: crop and resize, mirror, RGB, policies, to tensor, normalise."""
    return _new_pipeline(options, image_px)


def _new_pipeline(options: Options, image_px: int) -> Compose:
    from timm.data import create_transform
    from torchvision.transforms import Compose

    made = create_transform(
        input_size=image_px,
        is_training=True,
        scale=(options.scale_min, 1.0),
        hflip=options.flip,
        color_jitter=None,  # type: ignore[arg-type]  # timm's hint leaves out that None turns it off
        auto_augment=options.policy,
        interpolation="bicubic",
        mean=transform.MEAN,
        std=transform.STD,
    )
    *crop_and_mirror, policies, to_tensor, normalize = made.transforms
    return Compose(
        [*crop_and_mirror, transform.convert_to_rgb, posterize_to_nothing(policies), to_tensor, normalize]
    )


@cache
def _quick_steps(options: Options, image_px: int) -> tuple[transform.DrawCrop, Callable[[Tensor], Tensor]]:
    """The pipeline's steps for mode `fast`, which draw the same in the same order: the crop; mirror and policies."""
    crop, *mirror, _rgb, policies, _to_tensor, _normalize = _new_pipeline(options, image_px).transforms
    return partial(_draw_crop, crop), partial(_finish, mirror, quick_policies(policies))


def _draw_crop(crop: RandomResizedCropAndInterpolation, height: int, width: int) -> transform.Crop:
    # it asks the picture for nothing but its size
    sized = torch.empty((1, height, width), device="meta")
    top, left, crop_height, crop_width = crop.get_params(sized, crop.scale, crop.ratio)
    return top, left, crop_height, crop_width


def _finish(mirror: list[RandomHorizontalFlip], policies: AutoAugment, square_3SS: Tensor) -> Tensor:
    """uint8 (3, S, S), colours next to each other in memory."""
    for step in mirror:  # none when flip is 0
        square_3SS = step(square_3SS)
    pixels_SS3 = square_3SS.permute(1, 2, 0).contiguous().numpy()
    return torch.from_numpy(as_array(policies(pixels_SS3))).permute(2, 0, 1)
