"""The student's pictures as a teacher wants them: its own size, its own normalisation.

Shapes: B pictures, C H W picture.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from cn_clip.clip.transform import MEAN, STD


def shown_to_teacher(
    images_BCHW: Tensor, side_px: int, mean: Sequence[float] = MEAN, std: Sequence[float] = STD
) -> Tensor:
    """Float pictures of `side_px`, normalised by `mean` and `std`, from uint8 or CLIP-normalised ones.

    A teacher of larger pictures sees enlarged ones: what the student's size has lost stays lost.
    """
    pixels_BCHW = _between_0_and_1(images_BCHW)
    if pixels_BCHW.shape[-1] != side_px or pixels_BCHW.shape[-2] != side_px:
        pixels_BCHW = F.interpolate(
            pixels_BCHW, size=(side_px, side_px), mode="bicubic", antialias=True, align_corners=False
        ).clamp(0, 1)
    return (pixels_BCHW - _column(mean, pixels_BCHW)) / _column(std, pixels_BCHW)


def _between_0_and_1(images_BCHW: Tensor) -> Tensor:
    if images_BCHW.dtype == torch.uint8:
        return images_BCHW.float() / 255
    return images_BCHW.float() * _column(STD, images_BCHW) + _column(MEAN, images_BCHW)


def _column(values: Sequence[float], like: Tensor) -> Tensor:
    return torch.tensor(values, device=like.device, dtype=torch.float32).view(-1, 1, 1)
