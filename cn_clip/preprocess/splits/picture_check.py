"""Whether bytes are a picture, and of which size: by its header and its end, or decoded in full.

PIL says what is a picture. Where that is enough, libjpeg-turbo reads a JPEG instead, some times faster.
"""

from __future__ import annotations

from io import BytesIO

import simplejpeg
from PIL import Image, UnidentifiedImageError

from cn_clip.clip.decode import JPEG_MAGIC, NO_PIXELS, max_pixels

# libjpeg-turbo's words for coded data that do not make the picture; PIL and most programs show it nevertheless
_DAMAGE = ("Corrupt JPEG data", "Premature end of JPEG")
_SCALE = 8  # a JPEG at an eighth of its size needs all of its coded data, but little arithmetic


class BadPictureError(Exception):
    """What is wrong with an encoded picture."""


def find_fault(picture: bytes) -> str | None:
    """What is wrong with an encoded picture, or None; the cheap check of `check_picture`."""
    try:
        check_picture(picture)
    except BadPictureError as error:
        return str(error)
    return None


def check_picture(picture: bytes, *, decode: bool = False) -> tuple[int, int]:
    """(width, height) in pixels; BadPictureError for what is no whole picture.

    Its header is read, and its end is looked for. A picture that does not end as its format does is decoded in full, which
    tells a cut file from one that merely has bytes after its end. `decode` decodes every picture in full.
    """
    if not picture:
        raise BadPictureError("it is empty")
    if picture.startswith(JPEG_MAGIC):
        size = _check_jpeg(picture, decode)
        if size is not None:
            return size
    return _check_with_pil(picture, decode)


def _check_jpeg(picture: bytes, decode: bool) -> tuple[int, int] | None:
    """None when PIL must judge: libjpeg-turbo's interface refuses some files that are pictures."""
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(picture)
    except ValueError:
        return None
    _refuse_bomb(width, height)
    if decode:
        return (width, height) if _decodes(picture, colours) else None
    return (width, height) if _has_jpeg_end(picture) else None


def _decodes(picture: bytes, colours: str) -> bool:
    """BadPictureError for damaged data; False for anything else that libjpeg-turbo remarks on."""
    # of other pictures the brightness is enough: its data stand between those of the colours
    kind = "CMYK" if colours in ("CMYK", "YCCK") else "GRAY"
    try:
        simplejpeg.decode_jpeg(picture, kind, min_height=1, min_width=1, min_factor=_SCALE, strict=True)
    except ValueError as error:
        if str(error).startswith(_DAMAGE):
            raise BadPictureError(f"the picture is damaged ({error})") from error
        return False
    return True


def _check_with_pil(picture: bytes, decode: bool) -> tuple[int, int]:
    try:
        with Image.open(BytesIO(picture)) as image:
            if image.format in NO_PIXELS:
                raise BadPictureError(f"{image.format} has no pixels; save it as PNG or JPEG")
            _refuse_bomb(*image.size)
            if image.format == "PNG" and b"IEND" not in picture:
                # PIL would not mind, if all pixels happen to be there
                raise BadPictureError("the picture is cut: it has no end")
            size = image.size
            if decode or not _ends_whole(picture, image.format):
                image.load()
            return size
    except UnidentifiedImageError as error:
        raise BadPictureError("not a picture of a known format") from error
    except BadPictureError:
        raise
    except Exception as error:  # PIL's many decoders raise whatever their parsing stumbles over
        reason = " ".join(str(error).split()) or type(error).__name__
        raise BadPictureError(f"the picture cannot be decoded ({reason})") from error


def _refuse_bomb(width: int, height: int) -> None:
    """A small file may claim a picture that no memory holds."""
    limit = max_pixels()
    if limit is not None and width * height > limit:
        raise BadPictureError(f"it claims {width} x {height} pixels, more than {limit:,}")


def _ends_whole(picture: bytes, format: str | None) -> bool:
    match format:
        case "JPEG" | "MPO":
            return _has_jpeg_end(picture)
        case "PNG":
            return b"IEND" in picture[-16:]
        case "GIF":
            return picture.endswith(b"\x3b")
        case "WEBP":
            after_size = int.from_bytes(picture[4:8], "little")  # RIFF counts what follows its size
            return after_size + 8 <= len(picture)
    return False


def _has_jpeg_end(picture: bytes) -> bool:
    return b"\xff\xd9" in picture[-64:]  # some cameras add a few bytes
