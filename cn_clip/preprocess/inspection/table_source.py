"""Pairs of a `{split}_imgs.tsv` and its `{split}_texts.jsonl`, read in stretches of bytes.

Where a build stops at the first bad row, an inspection counts it and goes on.
"""

from __future__ import annotations

import binascii
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from cn_clip.data.bad_rows import BadRow
from cn_clip.data.captions import MAX_ID, Caption, read_caption_row
from cn_clip.data.store import PairColumns
from cn_clip.data.table_format import BOM, MAX_ROW_BYTES, decode_base64
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

    def columns(self) -> PairColumns | None:
        return None

    def why_rebuild(self) -> str | None:
        return None

    def caption_stretches(self, chosen: NDArray[np.int64] | None) -> Sequence[Stretch]:
        return _cut(self._captions, None)

    def picture_stretches(self, wanted: NDArray[np.int64] | None) -> Sequence[Stretch]:
        return _cut(self._pictures, wanted)

    def captions(self, stretch: Stretch) -> Iterator[RawCaption | Unusable]:
        for place, line in _lines(self._captions, stretch):
            row = self._caption_at(place, line)
            if isinstance(row, BadRow):
                yield Unusable(place, row.reason)
            else:
                yield RawCaption(place, row.text_id, row.text, row.image_ids)

    def pictures(self, stretch: Stretch) -> Iterator[RawPicture | Unusable]:
        for place, line in _lines(self._pictures, stretch):
            image_id = None
            try:
                image_id, encoded = _split_row(line.strip())
                if stretch.chosen is None or _is_in(image_id, stretch.chosen):
                    yield RawPicture(place, image_id, _decode_base64(encoded))
            except ValueError as error:
                yield Unusable(place, str(error), image_id)

    def caption(self, place: int) -> str:
        row = self._caption_at(place, _line_at(self._captions, place))
        if isinstance(row, BadRow):
            raise DataError(
                f"{self._captions} has changed since it was read ({row.reason}): inspect it again"
            )
        return row.text

    def _caption_at(self, place: int, line: bytes) -> Caption | BadRow:
        """As a build judges it; rows without `image_ids` pass, as extraction takes them."""
        # numbered by the byte where it begins: which line that is, only those that are shown are asked
        return read_caption_row(line, place, self._captions, labelled=False)

    def picture(self, place: int, image_id: int) -> bytes:
        return _decode_base64(_split_row(_line_at(self._pictures, place).strip())[1])

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
        while place < stretch.last and (line := file.readline(MAX_ROW_BYTES + 1)):
            if len(line) > MAX_ROW_BYTES:
                raise DataError(
                    f"{path} at byte {place:,}: a row longer than {MAX_ROW_BYTES:,} bytes; is this a TSV?"
                )
            content = line.removeprefix(BOM) if place == 0 else line
            if content and not content.isspace():
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
        return decode_base64(encoded)
    except binascii.Error as error:
        raise ValueError(f"not base64 ({error})") from error
