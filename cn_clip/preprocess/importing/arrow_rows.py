"""Pictures and captions in the columns of Arrow tables: parquet files, and Hugging Face `datasets` on the disk.

pyarrow is imported when it is used: it comes with `pip install cn_clip[import]`.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cn_clip.errors import ConfigError, DataError
from cn_clip.preprocess.importing.columns import CAPTION_COLUMNS, IMAGE_COLUMNS, Wanted, find_columns
from cn_clip.preprocess.importing.items import (
    BadItem,
    BytesContent,
    Content,
    FileContent,
    Item,
    Picture,
    Text,
    name_below,
)

BATCH_ROWS = 64
"""Rows in memory at once: their pictures are."""


@dataclass(frozen=True, kw_only=True)
class ColumnFlags:
    """Flags of sources of Arrow tables."""

    image_column: str | None = None
    """column of the picture, {bytes, path} or its bytes; found by its usual names when not given"""
    caption_column: str | None = None
    """column of the caption, a text or a list of texts, likewise"""
    name_column: str | None = None
    """column of a name for each picture; FILE#ROW when not given"""
    image_dir: Path | None = None
    """folder of the picture files, where the column has their paths only"""


@dataclass(frozen=True)
class Columns:
    """The columns that are read, all there."""

    image: str
    caption: str
    name: str | None

    def all(self) -> list[str]:
        return [self.image, self.caption, *([self.name] if self.name else [])]


def arrow(module: str) -> Any:  # Any: a module of pyarrow, which may not be installed
    """A module of pyarrow; ConfigError when it is not installed."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ConfigError(
            "reading parquet files and datasets needs pyarrow: pip install cn_clip[import]"
        ) from error


def choose_columns(there: Sequence[str], flags: ColumnFlags, where: Path) -> Columns:
    """DataError says which columns there are, when one that is needed is not among them."""
    wanted = [
        Wanted("--image-column", flags.image_column, IMAGE_COLUMNS),
        Wanted("--caption-column", flags.caption_column, CAPTION_COLUMNS),
    ]
    # it may be the column of another: names that are captions, or paths of pictures
    names = [] if flags.name_column is None else [Wanted("--name-column", flags.name_column)]
    try:
        image, caption = find_columns(there, wanted)
        name = find_columns(there, names)
    except DataError as error:
        raise DataError(f"{where}: {error}") from error
    return Columns(there[image], there[caption], there[name[0]] if name else None)


def arrow_items(
    batches: Iterable[Any],  # Any: pyarrow.RecordBatch
    columns: Columns,
    path: Path,
    image_dir: Path | None,
    first_row: int = 0,
) -> Iterator[Item]:
    """Pictures and captions of record batches of the file at `path`.

    Messages count rows from 1, as those of other tables do; names count them from 0, and ids belong to names.
    """
    row = first_row
    for batch in batches:
        images, captions = batch.column(columns.image), batch.column(columns.caption)
        names = batch.column(columns.name) if columns.name else None
        for place in range(batch.num_rows):
            where = f"{path} row {row + 1}"
            try:
                image, caption = images[place].as_py(), captions[place].as_py()
                name = f"{path.name}#{row}" if names is None else names[place].as_py()
            except (
                ValueError,
                OverflowError,
            ) as error:  # a text that is not UTF-8, a date that Python cannot hold
                yield BadItem(where, f"it cannot be read ({' '.join(str(error).split())})")
            else:
                yield from _row_items(image, caption, name, where, columns, image_dir)
            row += 1


def _row_items(
    image: object, caption: object, name: object, where: str, columns: Columns, image_dir: Path | None
) -> Iterator[Item]:
    captions = caption if isinstance(caption, list) else [caption]
    if not captions or not all(isinstance(item, str) and item.strip() for item in captions):
        yield BadItem(f"{where}, column {columns.caption}", "it is empty, or no text")
        return
    if isinstance(name, bool) or not isinstance(name, str | int) or name == "":
        yield BadItem(f"{where}, column {columns.name}", "it is empty, or neither text nor number")
        return
    content = _content(image, image_dir)
    if isinstance(content, str):
        yield BadItem(f"{where}, column {columns.image}", content)
        return
    yield Picture(str(name), content, where)
    for text in captions:
        yield Text(str(text).strip(), (str(name),), where)


def _content(image: object, image_dir: Path | None) -> Content | str:
    """Where the picture is, or why there is none."""
    match image:
        case bytes():
            return BytesContent(image)
        case {"bytes": bytes(content)}:
            return BytesContent(content)
        case {"path": str(path)} | str(path):
            if image_dir is None:
                return f"it has the path {path!r} only; give the folder of the pictures with --image-dir"
            try:
                return FileContent(image_dir / name_below(image_dir, path), image_dir)
            except DataError as error:
                return str(error)
        case None | {"bytes": None}:
            return "it holds no picture"
    return "it holds neither the bytes of a picture nor a path"
