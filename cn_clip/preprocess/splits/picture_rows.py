"""Rows of a `{split}_imgs.tsv`: an image id, a tab, the picture in base64."""

from __future__ import annotations

import binascii
import re
from collections.abc import Generator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from cn_clip.data.bad_rows import BadRow
from cn_clip.data.captions import MAX_ID
from cn_clip.data.table_format import decode_base64
from cn_clip.preprocess.splits.in_order import in_order
from cn_clip.preprocess.splits.line_blocks import LineBlock, read_blocks
from cn_clip.preprocess.splits.picture_check import BadPictureError, check_picture

_SPACE = b" \t\r\n\v\f"
_LEADING_ZEROS = re.compile(rb"-?0[0-9]+")


@dataclass(frozen=True, slots=True)
class PictureRow:
    """One picture of the file, checked."""

    image_id: int
    picture: bytes
    """Encoded as it came: JPEG, PNG, …"""
    size: tuple[int, int]
    """Width and height in pixels."""
    row: int
    """Line of the file, from 1."""


@dataclass(frozen=True, slots=True)
class PictureBlock:
    """The rows of some lines that follow each other."""

    rows: list[PictureRow | BadRow]
    """Without blank lines."""
    num_lines: int
    num_bytes: int


def read_pictures(
    tsv_path: Path, *, decode: bool = False, num_threads: int = 1
) -> Generator[PictureBlock, None, None]:
    """Each picture in file order, block by block; DataError when the file cannot be read.

    `decode` decodes every picture in full, in as many threads as given.
    """
    return in_order(partial(check_block, decode=decode), read_blocks(tsv_path), num_threads)


def check_block(block: LineBlock, *, decode: bool = False) -> PictureBlock:
    rows: list[PictureRow | BadRow] = []
    content, start = block.content, 0
    for row, end in enumerate(block.line_ends, start=block.first_row):
        first, last = _trim(content, start, end)
        if first < last:
            try:
                rows.append(_read_row(content, first, last, row, decode))
            except _UnusableError as error:
                rows.append(error.at(block, row, is_unended=end == len(content)))
        start = end + 1
    return PictureBlock(rows, len(block.line_ends), block.num_bytes)


def _trim(content: bytes, start: int, end: int) -> tuple[int, int]:
    while end > start and content[end - 1] in _SPACE:
        end -= 1
    while start < end and content[start] in _SPACE:
        start += 1
    return start, end


class _UnusableError(Exception):
    def __init__(self, column: int | None, reason: str, image_id: int | None = None) -> None:
        self.column, self.reason, self.image_id = column, reason, image_id

    def at(self, block: LineBlock, row: int, *, is_unended: bool) -> BadRow:
        return BadRow(
            path=block.path,
            row=row,
            column=self.column,
            reason=self.reason,
            image_id=self.image_id,
            is_unended=is_unended,
        )


def _read_row(content: bytes, first: int, last: int, row: int, decode: bool) -> PictureRow:
    """The row between two places of the content: looked at where it stands, since it is mostly its picture."""
    tab = content.find(b"\t", first, last)
    image_id = _read_id(content[first:tab]) if tab >= 0 else None
    if image_id is None:
        _require_columns(content[first:last])
        raise _UnusableError(1, _fault_of_id(content[first:tab]))
    try:
        picture = decode_base64(memoryview(content)[tab + 1 : last])
        size = check_picture(picture, decode=decode)
    except binascii.Error as error:
        _require_columns(content[first:last])
        raise _UnusableError(2, f"not base64 ({error}); encode the picture file again", image_id) from error
    except BadPictureError as error:
        raise _UnusableError(2, f"{error}; mend or remove the row", image_id) from error
    return PictureRow(image_id, picture, size, row)


def _require_columns(line: bytes) -> None:
    num_columns = line.count(b"\t") + 1
    if num_columns != 2:
        raise _UnusableError(
            None,
            f"it has {num_columns} column{'s'[: num_columns != 1]}, not 2; "
            "give an image id, a tab and the picture in base64",
        )


def _read_id(column: bytes) -> int | None:
    try:
        image_id = int(column)
    except ValueError:
        return None
    if b"%d" % image_id != column or abs(image_id) > MAX_ID:  # no `007`, `1_000` or `+5`
        return None
    return image_id


def _fault_of_id(column: bytes) -> str:
    shown = column[:40].decode("utf-8", "replace")
    if _LEADING_ZEROS.fullmatch(column):
        return (
            f"{shown!r} has leading zeros, which are not allowed; "
            "write the number without them, in the captions too"
        )
    return f"{shown!r} is not a whole number of 64 bits; number the pictures"
