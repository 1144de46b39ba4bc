"""Pairs of a `{split}_imgs.tsv` and its `{split}_texts.jsonl`, read in stretches of bytes.

Where a build stops at the first bad row, an inspection counts it and goes on.
"""

from __future__ import annotations

import binascii
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from cn_clip.data.captions import MAX_ID
from cn_clip.errors import DataError
from cn_clip.preprocess.inspection.sources import (
    CAPTIONS_SUFFIX,
    PICTURES_SUFFIX,
    RawCaption,
    RawPicture,
    Stretch,
    Unusable,
)

_STRETCH_BYTES = 4 << 20
_MAX_ROW_BYTES = 512 << 20  # as the build has it
_BOM = b"\xef\xbb\xbf"
_STANDARD_ALPHABET = bytes.maketrans(b"-_", b"+/")


class TableSource:
    kind = "TSV and JSONL"
    caption_unit = picture_unit = "B"

    def __init__(self, stem: Path) -> None:
        self.name = stem.name
        self.path = stem
        self._pictures = stem.with_name(stem.name + PICTURES_SUFFIX)
        self._captions = stem.with_name(stem.name + CAPTIONS_SUFFIX)
        self._counted: dict[Path, tuple[int, int]] = {}
        for path in (self._pictures, self._captions):
            if not path.is_file():
                raise DataError(f"{path} does not exist: a split needs both files")

    def num_pairs_by_number(self) -> int | None:
        return None

    def why_rebuild(self) -> str | None:
        return None

    def caption_stretches(self, chosen: NDArray[np.int64] | None) -> Sequence[Stretch]:
        return _cut(self._captions, None)

    def picture_stretches(self, wanted: NDArray[np.int64] | None) -> Sequence[Stretch]:
        return _cut(self._pictures, wanted)

    def captions(self, stretch: Stretch) -> Iterator[RawCaption | Unusable]:
        for place, line in _lines(self._captions, stretch):
            try:
                yield _read_caption(place, line)
            except (ValueError, RecursionError) as error:
                yield Unusable(place, str(error))

    def pictures(self, stretch: Stretch) -> Iterator[RawPicture | Unusable]:
        for place, line in _lines(self._pictures, stretch):
            image_id = None
            try:
                image_id, encoded = _split_row(line)
                if stretch.chosen is None or _is_in(image_id, stretch.chosen):
                    yield RawPicture(place, image_id, _decode_base64(encoded))
            except ValueError as error:
                yield Unusable(place, str(error), image_id)

    def caption(self, place: int) -> str:
        return _read_caption(place, _line_at(self._captions, place)).text

    def picture(self, place: int, image_id: int) -> bytes:
        return _decode_base64(_split_row(_line_at(self._pictures, place))[1])

    def name_caption(self, place: int) -> str:
        return f"{self._captions.name} row {self._row(self._captions, place)}"

    def name_picture(self, place: int, image_id: int | None) -> str:
        named = "" if image_id is None else f", picture {image_id}"
        return f"{self._pictures.name} row {self._row(self._pictures, place)}{named}"

    def _row(self, path: Path, place: int) -> int:
        """Number of the line at this place, counted on from the one asked for before."""
        start, row = self._counted.get(path, (0, 1))
        if place < start:
            start, row = 0, 1
        with path.open("rb") as file:
            file.seek(start)
            while start < place:
                block = file.read(min(_STRETCH_BYTES, place - start))
                row, start = row + block.count(b"\n"), start + len(block)
        self._counted[path] = place, row
        return row


def _cut(path: Path, wanted: NDArray[np.int64] | None) -> list[Stretch]:
    size = path.stat().st_size
    starts = range(0, size, _STRETCH_BYTES)
    ends = [min(start + _STRETCH_BYTES, size) for start in starts]
    return [Stretch(start, end, wanted, end - start) for start, end in zip(starts, ends, strict=True)]


def _lines(path: Path, stretch: Stretch) -> Iterator[tuple[int, bytes]]:
    """(place, content) of each line that begins inside the stretch; blank lines are passed over."""
    with path.open("rb", buffering=1 << 20) as file:
        place = _first_line(file, stretch.first)
        while place < stretch.last and (line := file.readline(_MAX_ROW_BYTES + 1)):
            if len(line) > _MAX_ROW_BYTES:
                raise DataError(
                    f"{path} at byte {place:,}: a row longer than {_MAX_ROW_BYTES:,} bytes; is this a TSV?"
                )
            content = (line.removeprefix(_BOM) if place == 0 else line).strip()
            if content:
                yield place, content
            place += len(line)


def _line_at(path: Path, place: int) -> bytes:
    return next(content for _, content in _lines(path, Stretch(place, place + 1)))


def _first_line(file: BinaryIO, place: int) -> int:
    """Where the first line at or after `place` begins; the file then stands there."""
    if place == 0:
        return 0
    place -= 1  # the end of a line may be right before it
    file.seek(place)
    while line := file.readline(_STRETCH_BYTES):
        place += len(line)
        if line.endswith(b"\n"):
            break
    return place


def _is_in(image_id: int, sorted_ids: NDArray[np.int64]) -> bool:
    place = int(np.searchsorted(sorted_ids, image_id))
    return place < len(sorted_ids) and int(sorted_ids[place]) == image_id


def _split_row(line: bytes) -> tuple[int, memoryview]:
    """(image id, picture in base64); ValueError for another row."""
    tab = line.find(b"\t")
    if tab < 0 or line.find(b"\t", tab + 1) >= 0:
        num_columns = line.count(b"\t") + 1
        raise ValueError(f"it has {num_columns} column{'s'[: num_columns != 1]}, not 2")
    column = line[:tab]
    if not column.removeprefix(b"-").isdigit() or b"%d" % int(column) != column or abs(int(column)) > MAX_ID:
        raise ValueError(
            f"the id {column[:40].decode('utf-8', 'replace')!r} is not a whole number of 64 bits"
        )
    # not a copy: a row is mostly this column
    return int(column), memoryview(line)[tab + 1 :]


def _decode_base64(encoded: memoryview) -> bytes:
    try:
        return binascii.a2b_base64(encoded, strict_mode=True)
    except binascii.Error:
        pass  # the url-safe alphabet is as good
    try:
        return binascii.a2b_base64(bytes(encoded).translate(_STANDARD_ALPHABET), strict_mode=True)
    except binascii.Error as error:
        raise ValueError(f"not base64 ({error})") from error


def _read_caption(place: int, line: bytes) -> RawCaption:
    """ValueError for a row that a build would refuse; rows without `image_ids` pass, as extraction takes them."""
    fields = json.loads(line.decode())
    if not isinstance(fields, dict):
        raise ValueError("not an object with named fields")
    text, image_ids = fields.get("text"), fields.get("image_ids", [])
    if isinstance(text, int | float) and not isinstance(text, bool):
        text = str(text)  # the build takes a number for a text too
    if not isinstance(text, str):
        raise ValueError("field text is missing or no text")
    if not isinstance(image_ids, list) or not all(map(_is_id, image_ids)):
        raise ValueError("field image_ids is not a list of whole numbers of 64 bits")
    if not _is_id(fields.get("text_id")):
        raise ValueError("field text_id is missing or not a whole number of 64 bits")
    return RawCaption(place, fields["text_id"], text, tuple(image_ids))


def _is_id(value: object) -> bool:
    # `True` is an int too, but no id
    return type(value) is int and abs(value) <= MAX_ID
