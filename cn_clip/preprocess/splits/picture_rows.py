"""Rows of a `{split}_imgs.tsv`: an image id, a tab, the picture in base64."""

from __future__ import annotations

import binascii
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from cn_clip.data.captions import MAX_ID
from cn_clip.errors import DataError
from cn_clip.preprocess.splits.picture_check import find_fault

_BOM = b"\xef\xbb\xbf"
_MAX_ROW_BYTES = 512 << 20  # a file without line ends must not be read into memory whole
_LEADING_ZEROS = re.compile(rb"-?0[0-9]+")
_STANDARD_ALPHABET = bytes.maketrans(b"-_", b"+/")


@dataclass(frozen=True, slots=True)
class PictureRow:
    """One picture of the file, checked."""

    image_id: int
    picture: bytes
    """Encoded as it came: JPEG, PNG, …"""
    row: int
    """Line of the file, from 1."""
    num_bytes: int
    """Of the line, for a progress bar."""


def read_pictures(tsv_path: Path) -> Iterator[PictureRow]:
    """Each picture in file order; blank lines are passed over. DataError names file, row and column."""
    try:
        with tsv_path.open("rb", buffering=1 << 20) as file:
            row = 0
            while line := file.readline(_MAX_ROW_BYTES + 1):
                row += 1
                if len(line) > _MAX_ROW_BYTES:
                    raise DataError(
                        f"{tsv_path} row {row}: longer than {_MAX_ROW_BYTES:,} bytes; is this a TSV?"
                    )
                content = (line.removeprefix(_BOM) if row == 1 else line).strip()
                if content:
                    yield _read_row(content, row, len(line), _where(tsv_path, row, line))
    except OSError as error:
        raise DataError(f"cannot read the pictures {tsv_path}: {error.strerror}") from error


def _where(path: Path, row: int, line: bytes) -> str:
    cut = "" if line.endswith(b"\n") else " (the last line, which may be cut)"
    return f"{path} row {row}{cut}"


def _read_row(content: bytes, row: int, num_bytes: int, where: str) -> PictureRow:
    tab = content.find(b"\t")
    if tab < 0 or content.find(b"\t", tab + 1) >= 0:
        num_columns = content.count(b"\t") + 1
        raise DataError(
            f"{where}: it has {num_columns} column{'s'[: num_columns != 1]}, not 2; "
            "give an image id, a tab and the picture in base64"
        )
    image_id = _read_id(content[:tab], where)
    encoded = memoryview(content)[tab + 1 :]  # not a copy: a row is mostly this column
    picture = _read_base64(encoded, f"{where}, column 2 (the picture of id {image_id})")
    fault = find_fault(picture)
    if fault is not None:
        raise DataError(f"{where}, column 2 (the picture of id {image_id}): {fault}; mend or remove the row")
    return PictureRow(image_id, picture, row, num_bytes)


def _read_id(column: bytes, where: str) -> int:
    try:
        image_id = int(column)
    except ValueError:
        image_id = None
    if image_id is None or b"%d" % image_id != column or abs(image_id) > MAX_ID:  # no `007`, `1_000` or `+5`
        shown = column[:40].decode("utf-8", "replace")
        if _LEADING_ZEROS.fullmatch(column):
            raise DataError(
                f"{where}, column 1: {shown!r} has leading zeros, which are not allowed; "
                "write the number without them, in the captions too"
            )
        raise DataError(f"{where}, column 1: {shown!r} is not a whole number of 64 bits; number the pictures")
    return image_id


def _read_base64(column: memoryview, where: str) -> bytes:
    try:
        return binascii.a2b_base64(column, strict_mode=True)
    except binascii.Error:
        pass  # the url-safe alphabet is as good
    try:
        return binascii.a2b_base64(bytes(column).translate(_STANDARD_ALPHABET), strict_mode=True)
    except binascii.Error as error:
        raise DataError(f"{where}: not base64 ({error}); encode the picture file again") from error
