"""Pictures read, checked and made smaller in threads, given back in their order."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass
from io import BytesIO

import pybase64
import xxhash
from PIL import Image

from cn_clip.errors import DataError
from cn_clip.preprocess.importing.items import Content, Item, Picture
from cn_clip.preprocess.splits.in_order import in_order
from cn_clip.preprocess.splits.picture_check import find_fault

_JPEG_QUALITY = 95


@dataclass(frozen=True, slots=True)
class Prepared:
    """A picture ready to be written, or why it cannot be."""

    encoded: bytes = b""
    """Base64 of the file."""
    digest: bytes = b""
    """xxh3_128 of the picture as it came."""
    fault: str | None = None


def prepare(content: Content, max_px: int | None) -> Prepared:
    """Read one picture, check it, and bring its longer side to `max_px` where it is longer."""
    try:
        picture = content.read()
    except DataError as error:
        return Prepared(fault=str(error))
    digest = xxhash.xxh3_128_digest(picture)
    fault = find_fault(picture)
    if fault is not None:
        return Prepared(fault=fault)
    if max_px is not None:
        try:
            picture = shrink(picture, max_px)
        except Exception as error:  # PIL's many decoders raise whatever their parsing stumbles over
            reason = " ".join(str(error).split()) or type(error).__name__
            return Prepared(fault=f"the picture cannot be decoded ({reason})")
    return Prepared(pybase64.b64encode(picture), digest)


def shrink(picture: bytes, max_px: int) -> bytes:
    """The picture itself when no side is longer than `max_px` pixels; else a JPEG of quality 95 whose longer side is that.

    As in training, transparency is dropped, not blended, and the EXIF rotation is not applied.
    """
    with Image.open(BytesIO(picture)) as image:
        longest = max(image.size)
        if longest <= max_px:
            return picture
        width, height = (max(1, round(side * max_px / longest)) for side in image.size)
        # JPEG is decoded at 1/2, 1/4 or 1/8 where that is still at least twice what is wanted
        image.draft("RGB", (width * 2, height * 2))
        small = image.convert("RGB").resize((width, height), Image.Resampling.BICUBIC)
    file = BytesIO()
    small.save(file, "JPEG", quality=_JPEG_QUALITY)
    return file.getvalue()


def prepared_in_order(
    items: Iterable[Item], num_threads: int, max_px: int | None, is_done: Callable[[Picture], bool]
) -> Generator[tuple[Item, Prepared | None], None, None]:
    """Each item, with its picture prepared where it is one; None beside a picture that `is_done` says need not be read."""

    def work(job: tuple[Item, bool]) -> tuple[Item, Prepared | None]:
        item, is_wanted = job
        return item, prepare(item.content, max_px) if is_wanted and isinstance(item, Picture) else None

    # asked here and not in `work`, since it looks into what this thread keeps
    jobs = ((item, isinstance(item, Picture) and not is_done(item)) for item in items)
    yield from in_order(work, jobs, num_threads)
