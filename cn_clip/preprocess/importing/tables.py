"""Rows of a table of captions, CSV, TSV, JSONL or JSON: which picture file, which caption, and on which line they stand."""

from __future__ import annotations

import csv
import json
import posixpath
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from cn_clip.errors import DataError
from cn_clip.preprocess.importing.columns import (
    CAPTION_COLUMNS,
    IMAGE_FILE_COLUMNS,
    Wanted,
    find_columns,
    looks_like_a_row,
    names_a_picture,
)
from cn_clip.preprocess.importing.items import BadItem
from cn_clip.preprocess.importing.json_arrays import is_array, iterate_array
from cn_clip.preprocess.importing.text_lines import Encoding, TextLines, UndecodableError

_DELIMITERS = {"comma": ",", "tab": "\t", "semicolon": ";", "pipe": "|"}


@dataclass(frozen=True, slots=True)
class TableRow:
    """One caption of one picture."""

    name: str
    """Picture file below the folder of pictures, written in one way only (`a.jpg` for `./a.jpg`)."""
    caption: str
    """Without white space around it, never empty."""
    row: int
    """Line of the table on which the row starts, from 1; of a JSON array, the object."""


@dataclass(frozen=True, kw_only=True)
class TableShape:
    """How a table is written."""

    image_column: str | None = None
    caption_column: str | None = None
    encoding: Encoding = "utf-8"
    delimiter: Literal["auto", "comma", "tab", "semicolon", "pipe"] = "auto"
    quotes: Literal["auto", "double", "none"] = "auto"
    header: bool = True

    def wanted(self) -> list[Wanted]:
        """Its columns: that of the pictures, and that of the captions."""
        return [
            Wanted("--image-column", self.image_column, IMAGE_FILE_COLUMNS),
            Wanted("--caption-column", self.caption_column, CAPTION_COLUMNS),
        ]


def read_table(path: Path, shape: TableShape) -> list[TableRow]:
    """Every row of a CSV in file order. DataError names file, row and column."""
    rows = []
    for row in iterate_table(path, shape):
        if isinstance(row, BadItem):
            raise DataError(f"{row.where}: {row.reason}")
        rows.append(row)
    if not rows:
        raise DataError(f"{path} has no rows below its column names: write one caption per row")
    return rows


def iterate_table(path: Path, shape: TableShape) -> Iterator[TableRow | BadItem]:
    """Each row in file order; DataError for what makes the whole table unreadable."""
    suffix = path.suffix.lower()
    if suffix == ".json" and is_array(path):
        for number, fields in enumerate(iterate_array(path), start=1):
            yield from _object_rows(fields, number, f"{path}, object {number}", shape)
    elif suffix in (".jsonl", ".ndjson", ".json"):
        yield from _json_rows(path, shape)
    else:
        yield from _cell_rows(path, shape)


def _cell_rows(path: Path, shape: TableShape) -> Iterator[TableRow | BadItem]:
    reader = _CellReader(path, shape)
    cells = iter(reader)
    try:
        first = next(cells)
    except StopIteration:
        raise DataError(f"{path} is empty: its first line should name the columns") from None
    if isinstance(first, BadItem):
        raise DataError(f"{first.where}: {first.reason}")
    header = [name.strip() for name in first[1]]
    if not shape.header:
        header = [str(number) for number in range(1, len(header) + 1)]
    try:
        image, caption = find_columns(header, shape.wanted())
    except DataError as error:
        raise DataError(
            f"{path} row 1: {(looks_like_a_row(header) if shape.header else '') or error}"
        ) from error
    if not shape.header:
        yield _cell_row(first, header, (image, caption), path)
    for row in cells:
        yield row if isinstance(row, BadItem) else _cell_row(row, header, (image, caption), path)


def _cell_row(
    row: tuple[int, list[str]], header: Sequence[str], places: tuple[int, int], path: Path
) -> TableRow | BadItem:
    start, values = row
    where = f"{path} row {start}"
    if len(values) != len(header):
        return BadItem(
            where,
            f"it has {_count(len(values), 'cell')}, not {len(header)}; "
            'put a caption that has commas between quotes ("…")',
        )
    for place, what in zip(places, ("a picture file", "a caption"), strict=True):
        if not values[place].strip():
            return BadItem(
                f"{where}, column {header[place]}", f"it is empty; give {what} or take the row out"
            )
    return TableRow(posixpath.normpath(values[places[0]].strip()), values[places[1]].strip(), start)


class _CellReader:
    """(line on which it starts, cells) of each row that is not blank."""

    def __init__(self, path: Path, shape: TableShape) -> None:
        self._path = path
        self._lines = TextLines(path, shape.encoding)
        self._delimiter = _delimiter_of(path, shape)
        quotes = shape.quotes
        if quotes == "auto":
            quotes = "none" if self._delimiter == "\t" else "double"
        # strict: a quote never closed is an error, not a huge cell
        self._reader = csv.reader(
            self._lines,
            delimiter=self._delimiter,
            quoting=csv.QUOTE_MINIMAL if quotes == "double" else csv.QUOTE_NONE,
            strict=True,
        )

    def __iter__(self) -> Iterator[tuple[int, list[str]] | BadItem]:
        while True:
            start = self._lines.row + 1
            try:
                cells = next(self._reader)
            except StopIteration:
                return
            except UndecodableError as error:
                yield BadItem(f"{self._path} row {self._lines.row}", str(error))
                continue
            except csv.Error as error:
                fault = (
                    f'not CSV ({error}); save the table as CSV with commas, quotes inside a cell doubled ("")'
                )
                if "unexpected end" in str(error):  # the rest of the table is inside this one cell
                    raise DataError(f"{self._path} row {start}: {fault}") from error
                yield BadItem(f"{self._path} row {start}", fault)
                continue
            if any(cell.strip() for cell in cells):
                yield start, cells


def _delimiter_of(path: Path, shape: TableShape) -> str:
    if shape.delimiter != "auto":
        return _DELIMITERS[shape.delimiter]
    if path.suffix.lower() in (".tsv", ".tab"):
        return "\t"
    try:
        first = next(iter(TextLines(path, shape.encoding)), "")
    except UndecodableError:
        return ","
    counts = {delimiter: first.count(delimiter) for delimiter in _DELIMITERS.values()}
    # the first line holds the names of columns, in which none of these is usual
    return max(counts, key=lambda delimiter: counts[delimiter])


def _json_rows(path: Path, shape: TableShape) -> Iterator[TableRow | BadItem]:
    lines = TextLines(path, shape.encoding)
    for number, line in enumerate(lines.or_bad()):
        if number == 0 and isinstance(line, str):
            _require_no_map(line, path)
        if isinstance(line, BadItem):
            yield line
        else:
            yield from _json_row(line, lines.row, lines.where, shape)


def _require_no_map(first_line: str, path: Path) -> None:
    """DataError when one object holds the whole table, as {"a.jpg": "…"} does."""
    try:
        fields = json.loads(first_line)
        is_map = isinstance(fields, dict) and any(map(names_a_picture, fields))
    except (ValueError, RecursionError):
        is_map = path.suffix.lower() == ".json" and first_line.lstrip().startswith("{")
    if is_map:
        raise DataError(
            f'{path} is no array of objects; give [{{"image": "a.jpg", "caption": "…"}}, …], or an object on each line'
        )


def _json_row(line: str, row: int, where: str, shape: TableShape) -> Iterator[TableRow | BadItem]:
    try:
        fields = json.loads(line)
    except (ValueError, RecursionError) as error:
        yield BadItem(where, f"not JSON ({error}); give one object per line")
        return
    yield from _object_rows(fields, row, where, shape)


def _object_rows(fields: object, row: int, where: str, shape: TableShape) -> Iterator[TableRow | BadItem]:
    if not isinstance(fields, dict):
        yield BadItem(where, "not an object with named fields")
        return
    names = [str(name) for name in fields]
    try:
        places = find_columns(names, shape.wanted(), "field")
    except DataError as error:
        yield BadItem(where, str(error))
        return
    values = []
    for place in places:
        texts = _texts(fields[names[place]])
        if not texts:
            yield BadItem(f"{where}, field {names[place]}", "it holds no text; give one or take the row out")
            return
        values.append(texts)
    for image in values[0]:
        for caption in values[1]:
            yield TableRow(posixpath.normpath(image), caption, row)


def _texts(value: object) -> list[str]:
    """The texts in a text or a list of texts; none when one of them is empty or no text."""
    values = value if isinstance(value, list) else [value]
    texts = [item.strip() for item in values if isinstance(item, str)]
    return texts if len(texts) == len(values) and all(texts) else []


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'s'[: number != 1]}"
