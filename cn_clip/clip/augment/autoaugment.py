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

from torch import Tensor

from cn_clip.clip import transform
from cn_clip.errors import ConfigError

if TYPE_CHECKING:
    from torchvision.transforms import Compose


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
            f"augment.scale_min is {options.scale_min}: give a share of the area, above 0, at most 1"
        )
    if not 0 <= options.flip <= 1:
        raise ConfigError(f"augment.flip is {options.flip}: give a share of the pictures, 0 to 1")


def augment(picture_3HW: Tensor, options: Options) -> Tensor:
    """uint8 (3, S, S) of a square one of that size, cropped and augmented."""
    return _augment_uint8(picture_3HW, options, picture_3HW.shape[-1])


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
        picture = transform.read_picture(raw)
        if isinstance(picture, Tensor):
            return _augment_uint8(picture, self.options, self.image_px)
        *before_tensors, _to_tensor, _normalize = pipeline(self.options, self.image_px).transforms
        for step in before_tensors:
            picture = step(picture)
        return transform.pil_to_uint8(picture).contiguous()


@cache
def pipeline(options: Options, image_px: int) -> Compose:
    """The reference's pipeline of a PIL picture: crop and resize, mirror, RGB, policies, to tensor, normalise."""
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
    return Compose([*crop_and_mirror, transform.convert_to_rgb, policies, to_tensor, normalize])


def _augment_uint8(picture_CHW: Tensor, options: Options, image_px: int) -> Tensor:
    """The same steps, with the same draws in the same order, on a uint8 tensor; policies act on the small picture."""
    from PIL.Image import fromarray

    crop, *mirror, _rgb, policies, _to_tensor, _normalize = pipeline(options, image_px).transforms
    top, left, height, width = crop.get_params(picture_CHW, crop.scale, crop.ratio)
    cropped_CHW = picture_CHW[:, top : top + height, left : left + width]
    square_3SS = transform.resize_uint8(cropped_CHW, image_px)
    for step in mirror:  # none when flip is 0
        square_3SS = step(square_3SS)
    image = fromarray(square_3SS.permute(1, 2, 0).contiguous().numpy())
    return transform.pil_to_uint8(policies(image)).contiguous()
