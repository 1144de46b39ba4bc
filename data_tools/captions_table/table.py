"""Rows of the CSV: which picture file, which caption, and on which line they stand."""

from __future__ import annotations

import csv
import posixpath
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from cn_clip.errors import DataError

_BOM = b"\xef\xbb\xbf"
_MAX_SHOWN = 60


@dataclass(frozen=True, slots=True)
class TableRow:
    """One caption of one picture."""

    name: str
    """Picture file below the folder of pictures, written in one way only (`a.jpg` for `./a.jpg`)."""
    caption: str
    """Without white space around it, never empty."""
    row: int
    """Line of the CSV on which the row starts, from 1; the names of the columns stand on the first."""


@dataclass(frozen=True, kw_only=True)
class Columns:
    """Names of the two columns that are read; others are passed over."""

    image: str = "image_id"
    caption: str = "caption"


def read_table(path: Path, columns: Columns) -> list[TableRow]:
    """Every row in file order. DataError names file, row and column."""
    rows = list(_rows_of(path, columns))
    if not rows:
        raise DataError(f"{path} has no rows below its column names: write one caption per row")
    return rows


def _rows_of(path: Path, columns: Columns) -> Iterator[TableRow]:
    cells = _cells_of(path)
    try:
        _, header = next(cells)
    except StopIteration:
        raise DataError(f"{path} is empty: its first line should name the columns") from None
    header = [name.strip() for name in header]
    image = _place(header, columns.image, "--image-column", path)
    caption = _place(header, columns.caption, "--caption-column", path)
    for row, values in cells:
        where = f"{path} row {row}"
        if len(values) != len(header):
            raise DataError(
                f"{where}: it has {_count(len(values), 'cell')}, not {len(header)}; "
                'put a caption that has commas between quotes ("…")'
            )
        name = _filled(values[image], where, columns.image, "give a picture file or take the row out")
        text = _filled(values[caption], where, columns.caption, "give a caption or take the row out")
        yield TableRow(posixpath.normpath(name), text, row)


def _cells_of(path: Path) -> Iterator[tuple[int, list[str]]]:
    """(line on which it starts, cells) of each row that is not blank."""
    reader = csv.reader(_lines_of(path), strict=True)  # a quote never closed is an error, not a huge cell
    start = 1
    try:
        for cells in reader:
            if any(cell.strip() for cell in cells):
                yield start, cells
            start = reader.line_num + 1
    except csv.Error as error:
        raise DataError(
            f"{path} row {start}: not CSV ({error}); save the table as CSV with commas, "
            'quotes inside a cell doubled ("")'
        ) from error


def _lines_of(path: Path) -> Iterator[str]:
    try:
        with path.open("rb") as file:
            for row, line in enumerate(file, start=1):
                yield (line.removeprefix(_BOM) if row == 1 else line).decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path} row {row}: not UTF-8; save the table again as CSV UTF-8 (in Excel: Save As, CSV UTF-8)"
        ) from error
    except OSError as error:
        raise DataError(f"cannot read the table {path}: {error.strerror}") from error


def _place(header: Sequence[str], name: str, flag: str, path: Path) -> int:
    """Which cell of a row holds the column of that name."""
    if name not in header:
        shown = ", ".join(header)
        shown = shown if len(shown) <= _MAX_SHOWN else f"{shown[: _MAX_SHOWN - 1]}…"
        raise DataError(f"{path} row 1: there is no column {name!r}; set {flag} to one of: {shown}")
    if header.count(name) > 1:
        raise DataError(f"{path} row 1: {header.count(name)} columns are named {name!r}; rename all but one")
    return header.index(name)


def _filled(value: str, where: str, column: str, next_step: str) -> str:
    value = value.strip()
    if not value:
        raise DataError(f"{where}, column {column}: it is empty; {next_step}")
    return value


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'s'[: number != 1]}"
