"""Parquet files with pictures in them: img2dataset's, or those of a Hugging Face data set.

Taken as given: img2dataset with `--output_format parquet` writes the columns key, txt and jpg (or png, webp: the bytes; empty where the
download failed, which is a bad row here); Hugging Face writes an image as {bytes, path}. A picture is named FILE#ROW, unless --name-column
gives a column of names. Needs `pip install cn_clip[import]`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from cn_clip.errors import ConfigError, DataError
from cn_clip.preprocess.importing.arrow_rows import (
    BATCH_ROWS,
    ColumnFlags,
    arrow,
    arrow_items,
    choose_columns,
)
from cn_clip.preprocess.importing.items import Item, Part, Source
from cn_clip.preprocess.importing.split_choice import SplitChoice


@dataclass(frozen=True, kw_only=True)
class Options(ColumnFlags, SplitChoice):
    files: tuple[Path, ...]
    """parquet files, or folders of them"""


def build(options: Options) -> Source:
    arrow("pyarrow.parquet")
    paths = [found for path in options.files for found in _find(path)]
    _require_distinct_names(paths)
    parts = [
        Part(path.name, partial(_items, path, options), (path,), num_items=partial(_num_items, path))
        for path in paths
    ]
    return Source(parts=parts, splits=options.names(), choice=options)


def _find(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    found = sorted(path.glob("*.parquet"))
    if not found:
        what = "a folder without *.parquet" if path.is_dir() else "neither a file nor a folder"
        raise DataError(f"--files: {path} is {what}: give parquet files or folders of them")
    return found


def _require_distinct_names(paths: Sequence[Path]) -> None:
    names = [path.name for path in paths]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(
                f"--files gives two files named {name}, after which pictures are named: import them apart"
            )


def _num_items(path: Path) -> int | None:
    """Two for each row; None of a broken file, which says so when it is read."""
    parquet, pyarrow = arrow("pyarrow.parquet"), arrow("pyarrow")
    try:
        return 2 * int(parquet.read_metadata(path).num_rows)
    except (pyarrow.ArrowException, OSError):
        return None


def _items(path: Path, options: Options) -> Iterator[Item]:
    parquet, pyarrow = arrow("pyarrow.parquet"), arrow("pyarrow")
    try:
        with parquet.ParquetFile(path) as file:
            columns = choose_columns(file.schema_arrow.names, options, path)
            batches = file.iter_batches(BATCH_ROWS, columns=columns.all(), use_threads=False)
            yield from arrow_items(batches, columns, path, options.image_dir)
    except pyarrow.ArrowException as error:
        raise DataError(f"{path}: not a whole parquet file ({' '.join(str(error).split())})") from error
    except OSError as error:
        raise DataError(f"cannot read {path}: {error}") from error
