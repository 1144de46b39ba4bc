"""One encoded picture, decoded once and described."""

from __future__ import annotations

import io
import warnings
from dataclasses import dataclass

import simplejpeg
import xxhash
from PIL import Image

from cn_clip.clip.decode import JPEG_MAGIC
from cn_clip.preprocess.inspection.near_hash import near_hash
from cn_clip.preprocess.splits.picture_check import find_fault

_JPEG_MODES = {"Gray": "L", "YCbCr": "RGB", "RGB": "RGB", "CMYK": "CMYK", "YCCK": "CMYK"}
_HASH_PX = 64  # scaled decoding stops above this, so that the near hash has pixels to average


@dataclass(frozen=True, slots=True)
class PictureLook:
    """What was seen; `fault` is why there are no pixels, `flaw` what the decoder remarked on."""

    digest: bytes
    """xxh3_128 of the encoded bytes."""
    num_bytes: int
    width: int = 0
    height: int = 0
    format: str = ""
    mode: str = ""
    near: int | None = None
    """None without pixels or contrast."""
    fault: str | None = None
    flaw: str | None = None


def look_at(picture: bytes) -> PictureLook:
    """Decode and describe; never raises for what the bytes hold.

    A JPEG is decoded at up to 1/8 of its size, which reads every coded byte all the same.
    """
    digest = xxhash.xxh3_128_digest(picture)
    with warnings.catch_warnings():
        # PIL remarks on odd metadata without saying of which picture
        warnings.simplefilter("ignore")
        # first, since of some formats PIL decodes none of the pixels, and would run another program for them
        fault = find_fault(picture)
        if fault is not None:
            return PictureLook(digest, len(picture), fault=fault)
        return _look_at_whole(picture, digest)


def _look_at_whole(picture: bytes, digest: bytes) -> PictureLook:
    flaw = None
    if picture.startswith(JPEG_MAGIC):
        try:
            return _look_at_jpeg(picture, digest)
        except ValueError as error:  # damage, or what libjpeg-turbo does not know: PIL has the last word
            flaw = _said(error)
    return _look_by_pil(picture, digest, flaw)


def _look_at_jpeg(picture: bytes, digest: bytes) -> PictureLook:
    height, width, colours, _ = simplejpeg.decode_jpeg_header(picture)
    grey_HW1 = simplejpeg.decode_jpeg(picture, "GRAY", min_height=_HASH_PX, min_width=_HASH_PX)
    near = near_hash(Image.fromarray(grey_HW1[:, :, 0]))
    return PictureLook(
        digest, len(picture), width, height, "JPEG", _JPEG_MODES.get(colours, colours), near=near
    )


def _look_by_pil(picture: bytes, digest: bytes, flaw: str | None) -> PictureLook:
    try:
        with Image.open(io.BytesIO(picture)) as image:
            image.load()
            near = near_hash(image.convert("L"))
    except Exception as error:  # PIL's many decoders raise whatever their parsing stumbles over
        return PictureLook(digest, len(picture), fault=f"the picture cannot be decoded ({_said(error)})")
    width, height = image.size
    return PictureLook(
        digest, len(picture), width, height, image.format or "", image.mode, near=near, flaw=flaw
    )


def _said(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
