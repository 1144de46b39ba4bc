"""Pictures to tensors: the one place that decodes, resizes and normalises.

`exact` follows the reference's pipeline with the same library calls, so its tensors are equal to the bit: squash to a
square by PIL's bicubic filter, only then to RGB (a palette picture is resized as palette), then CLIP's mean and
deviation. `fast` decodes JPEG with torchvision and resizes uint8 tensors; its pixels differ from the exact ones by 1 of
255 at most in the middle of a photo, and normalising is left to the device.

Shapes: C colours (1 or 3), H height, W width, S side of the square asked for.
"""

from __future__ import annotations

import io
import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from cn_clip.config.schema import Part
from cn_clip.errors import DataError

if TYPE_CHECKING:  # both take a while to import, and a command that reads no picture needs neither
    from PIL.Image import Image
    from torchvision.transforms import Compose

logger = logging.getLogger(__name__)

MEAN = (0.48145466, 0.4578275, 0.40821073)
"""Of red, green, blue in CLIP's training pictures, 0 to 1 (arXiv:2103.00020, released code)."""
STD = (0.26862954, 0.26130258, 0.27577711)
"""Deviation, likewise."""
JPEG_MAGIC = b"\xff\xd8\xff"

BytesTransform = Callable[[bytes], Tensor]
"""An encoded picture to a tensor (3, S, S): normalised float32 (exact) or uint8 (fast); DataError for damaged bytes."""
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
        picture = read_picture(raw)
        if isinstance(picture, Tensor):
            return resize_uint8(picture, self.image_px).contiguous()
        return resize_by_pil(picture, self.image_px)


@dataclass(frozen=True)
class AugmentedTransform:
    """Resize, then the operation of `cn_clip/clip/augment/<type>.py` on uint8."""

    image_px: int
    mode: Mode
    augment: Part

    def __call__(self, raw: bytes) -> Tensor:
        operation = _operation(self.augment)
        if self.mode == "fast":
            return operation(FastTransform(self.image_px)(raw))
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


def open_picture(raw: bytes) -> Image:
    """The decoded PIL picture, in its own mode and not turned by EXIF (as the reference reads it)."""
    from PIL import Image

    try:
        image = Image.open(io.BytesIO(raw))
        image.load()
    except (
        Exception
    ) as error:  # PIL's readers raise a dozen kinds for damaged bytes; any of them says the same here
        kind = "nothing" if not raw else f"{len(raw)} bytes that are no readable picture"
        raise DataError(f"{kind} where a picture should be ({error})") from error
    return image


def read_picture(raw: bytes) -> Tensor | Image:
    """uint8 (C, H, W) where colours may be resized as tensors; PIL's picture for palettes, alpha, CMYK, 16 bits."""
    if raw.startswith(JPEG_MAGIC):
        picture_CHW = _decode_jpeg(raw)
        if picture_CHW is not None:
            return picture_CHW
    image = open_picture(raw)
    return pil_to_uint8(image) if image.mode in ("RGB", "L") else image


def _decode_jpeg(raw: bytes) -> Tensor | None:
    """uint8 (C, H, W), or None for PIL to read: CMYK, or damaged (then PIL names the damage or reads it after all)."""
    decode = _jpeg_decoder()
    if decode is None:
        return None
    try:
        # a bytearray, since frombuffer warns of memory that cannot be written
        picture_CHW = decode(torch.frombuffer(bytearray(raw), dtype=torch.uint8))
    except RuntimeError:
        return None
    return picture_CHW if picture_CHW.shape[0] in (1, 3) else None


@cache
def _jpeg_decoder() -> Callable[[Tensor], Tensor] | None:
    """torchvision's, or None where it has none: deprecated since 0.29, and builds without libjpeg lack it too."""
    try:
        from torchvision.io import decode_jpeg
    except ImportError:
        logger.warning("This torchvision does not decode JPEG: PIL does, to the same pixels but more slowly.")
        return None
    decoder: Callable[[Tensor], Tensor] = decode_jpeg
    return decoder


def resize_uint8(picture_CHW: Tensor, image_px: int) -> Tensor:
    """uint8 (3, S, S) view, squashed by the antialiased bicubic filter; grey becomes three equal colours.

    Colours stay next to each other in memory when they were, as the decoder leaves them: that is the filter's quick path.
    """
    square_CSS = F.interpolate(picture_CHW[None], size=(image_px, image_px), mode="bicubic", antialias=True)[
        0
    ]
    return square_CSS.expand(3, -1, -1)


def resize_by_pil(image: Image, image_px: int) -> Tensor:
    """uint8 (3, S, S): the exact transform's pixels before they are normalised."""
    resize, to_rgb, *_ = _image_transform(image_px).transforms
    return pil_to_uint8(to_rgb(resize(image))).contiguous()


def pil_to_uint8(image: Image) -> Tensor:
    """uint8 (C, H, W) of a picture in mode L or RGB."""
    import numpy as np

    pixels = torch.from_numpy(np.array(image))
    return pixels[None] if pixels.ndim == 2 else pixels.permute(2, 0, 1)
