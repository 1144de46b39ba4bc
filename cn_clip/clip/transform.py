"""Pictures to tensors: the one place that decodes, resizes and normalises.

`exact` follows the reference's pipeline with the same library calls, so its tensors are equal to the bit: squash to a
square by PIL's bicubic filter, only then to RGB (a palette picture is resized as palette), then CLIP's mean and
deviation. `fast` decodes JPEG with libjpeg-turbo, large ones to a fraction of their size, and resizes uint8 tensors; its
pixels differ from the exact ones by 1 of 255 at most, in decoded fractions by 4, and normalising is left to the device.

Shapes: C colours (1 or 3), H height, W width, S side of the square asked for.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from cn_clip.clip.decode import Pixels_HWC, decode_jpeg, jpeg_size, open_picture, pixels_of, shrink_for
from cn_clip.config.schema import Part

if TYPE_CHECKING:  # both take a while to import, and a command that reads no picture needs neither
    from PIL.Image import Image
    from torchvision.transforms import Compose

MEAN = (0.48145466, 0.4578275, 0.40821073)
"""Of red, green, blue in CLIP's training pictures, 0 to 1 (arXiv:2103.00020, released code)."""
STD = (0.26862954, 0.26130258, 0.27577711)
"""Deviation, likewise."""

BytesTransform = Callable[[bytes], Tensor]
"""An encoded picture to a tensor (3, S, S): normalised float32 (exact) or uint8 (fast); DataError for damaged bytes."""
Crop = tuple[int, int, int, int]
"""Top, left, height and width of a part of a picture."""
DrawCrop = Callable[[int, int], Crop]
"""From height and width of a picture."""
Mode = Literal["exact", "fast"]


def image_transform(image_size: int = 224) -> Compose:
    """The reference's transform of an opened PIL picture: normalised float32 (3, S, S)."""
    from torchvision.transforms import Compose, InterpolationMode, Normalize, Resize, ToTensor

    resize = Resize((image_size, image_size), interpolation=InterpolationMode.BICUBIC)
    return Compose([resize, convert_to_rgb, ToTensor(), Normalize(MEAN, STD)])


def convert_to_rgb(image: Image) -> Image:
    """The picture in mode RGB; transparency is dropped, not blended."""
    return image.convert("RGB")


def exact_transform(image_px: int) -> BytesTransform:
    """Encoded picture -> what `image_transform` gives for it, to the bit."""
    return ExactTransform(image_px)


def fast_transform(image_px: int) -> BytesTransform:
    """Encoded picture -> uint8 (3, S, S), not normalised."""
    return FastTransform(image_px)


def train_transform(image_px: int, mode: Mode, augment: Part) -> BytesTransform:
    """Transform of training pictures: float32 in mode `exact`, uint8 in mode `fast`.

    Augmentations draw from Python's, numpy's and torch's global generators, which the caller seeds per picture.
    """
    plain = exact_transform(image_px) if mode == "exact" else fast_transform(image_px)
    if augment.type == "none":
        return plain
    if augment.type == "autoaugment":  # it crops the picture before the resize, so it takes the bytes
        from cn_clip.clip.augment import autoaugment

        return autoaugment.AutoAugmentTransform(image_px, mode, augment.options)
    return AugmentedTransform(image_px, mode, augment)


@dataclass(frozen=True)
class ExactTransform:
    image_px: int

    def __call__(self, raw: bytes) -> Tensor:
        transformed: Tensor = _image_transform(self.image_px)(open_picture(raw))
        return transformed


@dataclass(frozen=True)
class FastTransform:
    image_px: int

    def __call__(self, raw: bytes) -> Tensor:
        return fast_square(raw, self.image_px)


@dataclass(frozen=True)
class AugmentedTransform:
    """Resize, then the operation of `cn_clip/clip/augment/<type>.py` on uint8."""

    image_px: int
    mode: Mode
    augment: Part

    def __call__(self, raw: bytes) -> Tensor:
        operation = _operation(self.augment)
        if self.mode == "fast":
            return operation(fast_square(raw, self.image_px))
        return normalize_like_exact(operation(resize_by_pil(open_picture(raw), self.image_px)))


@cache
def _image_transform(image_px: int) -> Compose:
    return image_transform(image_px)


@cache
def _operation(augment: Part) -> Callable[[Tensor], Tensor]:
    operation: Callable[[Tensor], Tensor] = import_module(f"cn_clip.clip.augment.{augment.type}").build(
        augment.options
    )
    return operation


def normalize_like_exact(picture_CHW: Tensor) -> Tensor:
    """float32 from uint8, by the operations of torchvision's ToTensor and Normalize in their order."""
    mean, std = torch.tensor(MEAN).view(3, 1, 1), torch.tensor(STD).view(3, 1, 1)
    return picture_CHW.contiguous().to(torch.float32).div(255).sub_(mean).div_(std)


def fast_square(raw: bytes, image_px: int, draw_crop: DrawCrop | None = None) -> Tensor:
    """uint8 (3, S, S) of an encoded picture, or of what `draw_crop` leaves of it; colours lie next to each other in memory."""
    size = jpeg_size(raw)
    if size is not None:
        # a crop seldom begins on a pixel of a shrunken picture, and half a pixel shows at every edge
        shrink = shrink_for(size, image_px) if draw_crop is None else 1
        decoded_HWC = decode_jpeg(raw, size, shrink)
        if decoded_HWC is not None and shrink > 1:
            return resize_uint8(decoded_HWC, image_px, size, shrink)
        if decoded_HWC is not None:
            return resize_uint8(cropped(decoded_HWC, draw_crop), image_px)
    image = open_picture(raw)
    if image.mode in ("RGB", "L"):
        return resize_uint8(cropped(pixels_of(image), draw_crop), image_px)
    if draw_crop is not None:
        top, left, height, width = draw_crop(image.height, image.width)
        image = image.crop((left, top, left + width, top + height))
    return resize_by_pil(image, image_px)


def cropped(pixels_HWC: Pixels_HWC, draw_crop: DrawCrop | None) -> Pixels_HWC:
    """A view of what `draw_crop` leaves."""
    if draw_crop is None:
        return pixels_HWC
    top, left, height, width = draw_crop(*pixels_HWC.shape[:2])
    return pixels_HWC[top : top + height, left : left + width]


def resize_uint8(
    pixels_HWC: Pixels_HWC, image_px: int, size: tuple[int, int] | None = None, shrink: int = 1
) -> Tensor:
    """uint8 (3, S, S) view, squashed by the antialiased bicubic filter; grey becomes three equal colours.

    `size` is (height, width) of the picture whose pixels these are at one `shrink`-th, where the last row and column stand
    for less than a whole pixel.
    """
    # the filter is quick only when this order of dimensions shows that colours lie next to each other in memory
    picture_1CHW = torch.from_numpy(pixels_HWC)[None].permute(0, 3, 1, 2)
    columns = picture_1CHW.shape[3]
    height, width = size or picture_1CHW.shape[2:]
    extent = (height / shrink, width / shrink)
    if _pil_begins_with_height(height, width, image_px):
        picture_1CHW = _squash(picture_1CHW, (extent[0], columns), (image_px, columns))
        extent = (image_px, extent[1])
    square_1CSS = _squash(picture_1CHW, extent, (image_px, image_px))
    return square_1CSS[0].expand(3, -1, -1)


def _squash(picture_1CHW: Tensor, extent: tuple[float, float], size: tuple[int, int]) -> Tensor:
    """To `size`, width before height; `extent` is the part of height and width to squash."""
    if extent == picture_1CHW.shape[2:]:
        return F.interpolate(picture_1CHW, size, mode="bicubic", antialias=True)
    # torch rounds the size down, which must not fall below the one asked for by a rounding error
    scale = (size[0] / extent[0] * (1 + 1e-9), size[1] / extent[1] * (1 + 1e-9))
    return F.interpolate(picture_1CHW, scale_factor=scale, mode="bicubic", antialias=True)


def _pil_begins_with_height(height: int, width: int, image_px: int) -> bool:
    """Which of its two passes comes first decides where colours beyond 0 and 255 are cut: up to 12 levels at hard edges."""
    return _pil_chooses_order() and height - image_px > 2 * max(width - image_px, 0)


@cache
def _pil_chooses_order() -> bool:
    """Pillow before 13 always squashes the width first (github.com/python-pillow/Pillow/pull/9549)."""
    from PIL import __version__

    return int(__version__.partition(".")[0]) >= 13


def resize_by_pil(image: Image, image_px: int) -> Tensor:
    """uint8 (3, S, S): the exact transform's pixels before they are normalised."""
    resize, to_rgb, *_ = _image_transform(image_px).transforms
    return torch.from_numpy(pixels_of(to_rgb(resize(image)))).permute(2, 0, 1)
