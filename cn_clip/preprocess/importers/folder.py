"""A folder of picture files, with a table of captions (CSV, TSV, JSON), text files beside the pictures, or folder names.

With --captions, each row of the table gives a picture file below the folder and a caption; a picture may have many rows. In
JSON both may be lists. Without it, --captions-from says what the caption is: `sidecar`, each line of the .txt file beside the
picture (a.jpg, a.txt); `folder`, the name of the folder that the picture lies in. Folders inside folders are read too.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

from cn_clip.data.tars.members import PICTURES
from cn_clip.errors import ConfigError, DataError
from cn_clip.preprocess.importing.items import (
    BadItem,
    FileContent,
    Item,
    Part,
    Picture,
    Source,
    Text,
    name_below,
    require_file,
    require_folder,
)
from cn_clip.preprocess.importing.split_choice import SplitChoice
from cn_clip.preprocess.importing.tables import TableShape, iterate_table
from cn_clip.preprocess.importing.text_lines import Encoding, TextLines, UndecodableError, count_lines

_PICTURE_SUFFIXES = tuple(f".{ending}" for ending in (*PICTURES, "jfif"))


@dataclass(frozen=True, kw_only=True)
class Options(SplitChoice):
    image_dir: Path
    """folder that the picture files lie below"""
    captions: Path | None = None
    """table of captions: .csv, .tsv, .jsonl, or .json with an array of objects"""
    captions_from: Literal["sidecar", "folder"] = "sidecar"
    """what the captions are where there is no table: text files beside the pictures, or the names of their folders"""
    caption_template: str = "{}"
    """caption made of a folder's name, which stands for {}"""
    image_column: str | None = None
    """column of the picture file, found by its usual names when not given; without a header, its number from 1"""
    caption_column: str | None = None
    """column of the caption, likewise"""
    encoding: Encoding = "utf-8"
    """of the table or the text files"""
    delimiter: Literal["auto", "comma", "tab", "semicolon", "pipe"] = "auto"
    """between the cells of a table; auto: a tab in .tsv, else what the first line has most of"""
    quotes: Literal["auto", "double", "none"] = "auto"
    """whether cells may stand between double quotes; auto: not where tabs are between the cells"""
    header: bool = True
    """the table's first line names its columns"""


def build(options: Options) -> Source:
    require_folder(options.image_dir, "--image-dir", "the pictures")
    splits = options.names()
    _check_together(options)
    if options.captions is not None:
        parts = (_table_part(options, options.captions),)
        return Source(parts=parts, splits=splits, choice=options, names_are_files=True)
    if options.caption_template.count("{}") != 1:
        raise ConfigError(f"--caption-template is {options.caption_template!r}; give a text with one {{}}")
    read = _with_sidecar if options.captions_from == "sidecar" else _with_folder_name
    part = Part(options.image_dir.name, partial(_walk, options, read))
    return Source(parts=(part,), splits=splits, choice=options, names_are_files=True)


def _check_together(options: Options) -> None:
    """ConfigError for flags of which one would be passed over."""
    if options.captions is not None and options.captions_from == "folder":
        raise ConfigError(
            "--captions and --captions-from folder: captions are in the table or in the names; give one"
        )
    if options.caption_template != "{}" and options.captions_from != "folder":
        raise ConfigError("--caption-template is for --captions-from folder: give that too, or leave it out")
    column = options.image_column
    if column is not None and column == options.caption_column:
        raise ConfigError(f"--image-column and --caption-column are both {column!r}: give two columns")


def _table_part(options: Options, table: Path) -> Part:
    require_file(table, "--captions", "a table of captions")
    if not options.header and (options.image_column is None or options.caption_column is None):
        raise ConfigError("--no-header needs --image-column and --caption-column: their numbers, from 1")
    shape = TableShape(
        image_column=options.image_column,
        caption_column=options.caption_column,
        encoding=options.encoding,
        delimiter=options.delimiter,
        quotes=options.quotes,
        header=options.header,
    )
    count = None if table.suffix.lower() == ".json" else partial(_num_items, table, options)
    return Part(table.name, partial(_table_items, options.image_dir, table, shape), (table,), num_items=count)


def _num_items(table: Path, options: Options) -> int:
    """Two for each line: too many where lines are blank, or inside of cells."""
    has_header = options.header and table.suffix.lower() not in (".jsonl", ".ndjson")
    return 2 * max(0, count_lines(table) - has_header)


def _table_items(image_dir: Path, table: Path, shape: TableShape) -> Iterator[Item]:
    for row in iterate_table(table, shape):
        if isinstance(row, BadItem):
            yield row
            continue
        where = f"{table} row {row.row}"
        try:
            name = name_below(image_dir, row.name)
        except DataError as error:
            yield BadItem(where, str(error))
            continue
        yield Picture(name, FileContent(image_dir / name, image_dir), where)
        yield Text(row.caption, (name,), where)


def _walk(options: Options, read: Callable[[Path, str, Options], Iterator[Item]]) -> Iterator[Item]:
    for path in _picture_files(options.image_dir):
        yield from read(path, path.relative_to(options.image_dir).as_posix(), options)


def _picture_files(folder: Path, above: frozenset[tuple[int, int]] = frozenset()) -> Iterator[Path]:
    """In an order that is the same everywhere; only the names of the folders on the way, which are `above`, stay in memory."""
    try:
        status, names = folder.stat(), sorted(os.listdir(folder))
    except OSError as error:
        raise DataError(f"cannot read the folder {folder}: {error.strerror}") from error
    this = (status.st_dev, status.st_ino)
    if this in above:  # a link to a folder that it lies in
        return
    for name in names:
        path = folder / name
        if name.startswith("."):  # macOS writes ._a.jpg, which is no picture, beside a.jpg on foreign disks
            continue
        if path.suffix.lower() in _PICTURE_SUFFIXES:
            yield path
        elif path.is_dir():
            yield from _picture_files(path, above | {this})


def _with_sidecar(path: Path, name: str, options: Options) -> Iterator[Item]:
    sidecar = path.with_suffix(".txt")
    if not sidecar.is_file():
        yield BadItem(str(path), f"there is no {sidecar.name} with its captions beside it")
        return
    try:
        captions = [line.strip() for line in TextLines(sidecar, options.encoding) if line.strip()]
    except UndecodableError as error:
        yield BadItem(str(sidecar), str(error))
        return
    if not captions:
        yield BadItem(str(sidecar), "it is empty; write a caption on each line")
        return
    yield Picture(name, FileContent(path), str(path))
    for caption in captions:
        yield Text(caption, (name,), str(sidecar))


def _with_folder_name(path: Path, name: str, options: Options) -> Iterator[Item]:
    if "/" not in name:
        yield BadItem(str(path), "it lies in no folder whose name could be its caption")
        return
    yield Picture(name, FileContent(path), str(path))
    yield Text(options.caption_template.replace("{}", path.parent.name), (name,), str(path))
