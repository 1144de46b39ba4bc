"""Encoded pictures to pixels: PIL reads every kind; for JPEG there is libjpeg-turbo, which can decode to a fraction of the size.

Nothing is decoded whose header promises more pixels than PIL accepts: a few kilobytes could fill the memory.

Shapes: C colours (3, or 1 of a grey picture), H height, W width.
"""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from cn_clip.errors import DataError

if TYPE_CHECKING:  # it takes a while to import, and a command that reads no picture needs none
    from PIL.Image import Image

Pixels_HWC = NDArray[np.uint8]

JPEG_MAGIC = b"\xff\xd8\xff"
NO_PIXELS = frozenset({"BUFR", "EPS", "FPX", "GRIB", "HDF5", "MIC", "PDF", "WMF"})
"""Formats that PIL opens, but not as pixels, or by running another program on them (EPS: Ghostscript)."""
SHRINKS = (8, 4, 2)
"""Shares of the size that libjpeg-turbo decodes to with vector instructions; its others (3/8, 5/8, ...) are slower than all."""
SPARE = 2.5
"""A decoded picture stays at least this many times the size asked for, or the pixels of photos go beyond 4/255 of the exact ones
(tests/benchmarks/loader.py --quality)."""


def open_picture(raw: bytes) -> Image:
    """The decoded PIL picture, in its own mode and not turned by EXIF (as the reference reads it); DataError."""
    from PIL import Image, UnidentifiedImageError

    try:
        image = Image.open(io.BytesIO(raw))
        if image.format in NO_PIXELS:
            raise DataError(f"a {image.format} file, which has no pixels; save it as PNG or JPEG")
        image.load()
    except DataError:
        raise
    except Image.DecompressionBombError as error:
        raise DataError(f"a picture too large to be opened safely ({error})") from error
    except UnidentifiedImageError as error:
        raise DataError(f"its {len(raw)} bytes are no picture of a known format") from error
    except (
        Exception
    ) as error:  # PIL's readers raise a dozen kinds for damaged bytes; any of them says the same here
        raise DataError(f"its {len(raw)} bytes are no picture that can be decoded ({error})") from error
    return image


def jpeg_size(raw: bytes) -> tuple[int, int] | None:
    """(height, width) of a JPEG that `decode_jpeg` may read; None for PIL to read: other formats, CMYK, a broken header."""
    if not raw.startswith(JPEG_MAGIC):
        return None
    from simplejpeg import decode_jpeg_header

    try:
        height, width, colours, _ = decode_jpeg_header(raw)
    except ValueError:
        return None
    if colours in ("CMYK", "YCCK"):
        return None
    _check_size(int(height), int(width))
    return int(height), int(width)


def max_pixels() -> int | None:
    """Pixels of the largest picture that is opened; None for no limit. PIL owns it, and refuses twice its number."""
    from PIL import Image

    return None if Image.MAX_IMAGE_PIXELS is None else 2 * Image.MAX_IMAGE_PIXELS


def _check_size(height: int, width: int) -> None:
    most = max_pixels()
    if most is not None and height * width > most:
        raise DataError(
            f"a picture too large to be opened safely ({width} x {height} pixels, more than {most})"
        )


def shrink_for(size: tuple[int, int], image_px: int) -> int:
    """1, 2, 4 or 8: how many times smaller a JPEG of (height, width) may be decoded for a square of `image_px`."""
    return next((shrink for shrink in SHRINKS if min(size) >= shrink * SPARE * image_px), 1)


def decode_jpeg(raw: bytes, size: tuple[int, int], shrink: int = 1) -> Pixels_HWC | None:
    """Red, green and blue of a JPEG of (height, width), both divided by `shrink` and rounded up.

    None where libjpeg warns: PIL reads such a file after all, or names the damage.
    """
    from simplejpeg import decode_jpeg

    height, width = (-(-side // shrink) for side in size)
    try:
        pixels_HWC: Pixels_HWC = decode_jpeg(
            raw, min_height=height, min_width=width, min_factor=shrink, strict=True
        )
    except ValueError:
        return None
    return pixels_HWC


def pixels_of(image: Image) -> Pixels_HWC:
    """Of a picture in mode L or RGB."""
    pixels = np.array(image)
    return pixels[:, :, None] if pixels.ndim == 2 else pixels
