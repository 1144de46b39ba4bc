"""Small rotations, scalings, shifts and colour changes: for drawings, icons and pictograms, small data above all.

The picture is moved on a background of its own corners' colour, so that an icon on white stays an icon on white.

Shapes: 3 colours, H height, W width.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as tvf

from cn_clip.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Options:
    rotate_degrees: float = 15.0
    """Largest rotation either way, in degrees."""
    scale_min: float = 0.8
    """Smallest size, as a share of the original."""
    scale_max: float = 1.2
    """Largest size, as a share of the original."""
    shift: float = 0.1
    """Largest shift either way, as a share of the side, each axis on its own."""
    shear_degrees: float = 0.0
    """Largest horizontal shear either way, in degrees."""
    brightness: float = 0.2
    """Colours are multiplied by 1 - brightness to 1 + brightness."""
    contrast: float = 0.2
    """Distance from the mean grey is multiplied by 1 - contrast to 1 + contrast."""
    saturation: float = 0.3
    """Distance from each pixel's own grey is multiplied by 1 - saturation to 1 + saturation."""
    hue: float = 0.0
    """Largest turn of the colour circle either way, as a share of it, 0 to 0.5."""
    flip: float = 0.0
    """Share of pictures mirrored left to right; captions that name a side turn wrong."""


def build(options: Options) -> Callable[[Tensor], Tensor]:
    if not 0 < options.scale_min <= options.scale_max:
        raise ConfigError(
            f"data.augment.scale_min is {options.scale_min} and data.augment.scale_max {options.scale_max}: "
            "give 0 < scale_min <= scale_max"
        )
    for name in ("brightness", "contrast", "saturation", "flip"):
        if not 0 <= (share := getattr(options, name)) <= 1:
            raise ConfigError(f"data.augment.{name} is {share}: give a share, 0 to 1")
    if not 0 <= options.hue <= 0.5:
        raise ConfigError(f"data.augment.hue is {options.hue}: give a share of the colour circle, 0 to 0.5")
    return partial(augment, options=options)


def augment(picture_3HW: Tensor, options: Options) -> Tensor:
    """The picture moved and recoloured, uint8 (3, H, W)."""
    moved_3HW = _move(picture_3HW, options)
    return _recolour(moved_3HW, options)


def _move(picture_3HW: Tensor, options: Options) -> Tensor:
    angle, shear, right, down, size, mirror = torch.rand(6).tolist()
    height, width = picture_3HW.shape[-2:]
    if mirror < options.flip:
        picture_3HW = tvf.horizontal_flip(picture_3HW)
    return tvf.affine(
        picture_3HW,
        angle=_spread(angle, options.rotate_degrees),
        translate=[_spread(right, options.shift) * width, _spread(down, options.shift) * height],
        scale=options.scale_min + size * (options.scale_max - options.scale_min),
        shear=[_spread(shear, options.shear_degrees), 0.0],
        interpolation=InterpolationMode.BILINEAR,
        fill=_corner_colour(picture_3HW),
    )


def _recolour(picture_3HW: Tensor, options: Options) -> Tensor:
    light, distance, colour, turn = torch.rand(4).tolist()
    if options.brightness:
        picture_3HW = tvf.adjust_brightness(picture_3HW, 1 + _spread(light, options.brightness))
    if options.contrast:
        picture_3HW = tvf.adjust_contrast(picture_3HW, 1 + _spread(distance, options.contrast))
    if options.saturation:
        picture_3HW = tvf.adjust_saturation(picture_3HW, 1 + _spread(colour, options.saturation))
    if options.hue:
        picture_3HW = tvf.adjust_hue(picture_3HW, _spread(turn, options.hue))
    return picture_3HW


def _spread(uniform: float, limit: float) -> float:
    """A number of 0 to 1 stretched to -limit to limit."""
    return (2 * uniform - 1) * limit


def _corner_colour(picture_3HW: Tensor) -> list[float]:
    corners_34 = picture_3HW[:, [0, 0, -1, -1], [0, -1, 0, -1]]
    return corners_34.float().mean(1).tolist()
