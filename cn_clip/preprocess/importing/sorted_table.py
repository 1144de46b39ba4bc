"""`data_tools/dataset_transform.py`: a CSV and a folder of pictures, ids by the order of file names, a share drawn by a seed.

Unlike `cn-clip import folder`, it knows all names before it begins: the table is held in memory.
"""

from __future__ import annotations

import json
import random
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from cn_clip.errors import ConfigError, DataError
from cn_clip.preprocess.importing.items import FileContent, Item, Part, Picture, Source, Text, name_below
from cn_clip.preprocess.importing.run import run_import
from cn_clip.preprocess.importing.run_options import RunOptions
from cn_clip.preprocess.importing.split_choice import check_split_names
from cn_clip.preprocess.importing.tables import TableRow, TableShape, read_table

IDS_FILE = "_image_ids.json"
"""End of the name: of each split one, since splits may come from tables of their own."""
_MISSING_SHOWN = 5


@dataclass(frozen=True, kw_only=True)
class Options:
    csv: Path
    image_dir: Path
    output_dir: Path
    image_column: str = "image_id"
    caption_column: str = "caption"
    splits: tuple[str, ...] = ("train", "valid")
    """One name for all pictures, or two: the second is held out."""
    valid_share: float = 0.2
    """Share of the pictures that the second split gets."""
    seed: int = 42
    """Which pictures they are."""


@dataclass(frozen=True, kw_only=True)
class Summary:
    """What was written: pictures and texts by split."""

    num_pictures: dict[str, int]
    num_texts: dict[str, int]
    num_repeats: int
    """Rows with picture and caption of an earlier one."""


def transform_table(options: Options) -> Summary:
    """Write the files of every split, all of them or none."""
    _check(options)
    shape = TableShape(
        image_column=options.image_column,
        caption_column=options.caption_column,
        delimiter="comma",
        quotes="double",
    )
    table = read_table(options.csv, shape)
    _require_pictures(table, options)
    rows = _without_repeats(table)
    image_ids = {name: image_id for image_id, name in enumerate(sorted({row.name for row in rows}))}
    chosen = split_names(list(image_ids), options)
    source = Source(
        parts=[Part(options.csv.name, partial(_items, rows, image_ids, chosen, options), (options.csv,))],
        splits=options.splits,
        own_ids=True,
        companions={f"{split}{IDS_FILE}": _ids_json(names, image_ids) for split, names in chosen.items()},
        has_names=False,
        is_resumable=False,
        advice="mend the file or take the row out",
    )
    report = run_import(
        "dataset_transform",
        options,
        source,
        RunOptions(output_dir=options.output_dir, start_anew=True),
    )
    return Summary(
        num_pictures={split.name: split.num_pictures for split in report.splits},
        num_texts={split.name: split.num_texts for split in report.splits},
        num_repeats=len(table) - len(rows),
    )


def _items(
    rows: Sequence[TableRow],
    image_ids: Mapping[str, int],
    chosen: Mapping[str, Collection[str]],
    options: Options,
) -> Iterator[Item]:
    """Pictures in the order of ids, then captions in the table's order."""
    first_rows = {row.name: row.row for row in reversed(rows)}
    for name, image_id in image_ids.items():
        path = options.image_dir / name
        where = f"{options.csv} row {first_rows[name]}, column {options.image_column}: {path}"
        split = next(split for split, names in chosen.items() if name in names)
        yield Picture(str(image_id), FileContent(path), where, name=name, split=split)
    for row in rows:
        yield Text(row.caption, (str(image_ids[row.name]),), f"{options.csv} row {row.row}")


def _ids_json(names: Collection[str], image_ids: Mapping[str, int]) -> bytes:
    by_id = {str(image_ids[name]): name for name in sorted(names)}
    return json.dumps(by_id, ensure_ascii=False, indent=0).encode() + b"\n"


def _without_repeats(table: Iterable[TableRow]) -> list[TableRow]:
    """The first of rows with the same picture and caption, in the table's order."""
    first: dict[tuple[str, str], TableRow] = {}
    for row in table:
        first.setdefault((row.name, row.caption), row)
    return list(first.values())


def split_names(names: Sequence[str], options: Options) -> dict[str, Collection[str]]:
    """Split → its pictures; they depend on the set of names, the share and the seed alone."""
    if len(options.splits) == 1:
        return {options.splits[0]: set(names)}
    num_held_out = max(1, round(len(names) * options.valid_share))
    if num_held_out >= len(names):
        raise DataError(
            f"{options.csv} has {len(names)} picture{'s'[: len(names) != 1]}, of which --valid-share "
            f"{options.valid_share} leaves none for {options.splits[0]}: give more, or --splits {options.splits[0]}"
        )
    held_out = set(random.Random(options.seed).sample(names, num_held_out))
    return {options.splits[0]: set(names) - held_out, options.splits[1]: held_out}


def _check(options: Options) -> None:
    if not options.csv.is_file():
        raise DataError(f"there is no file {options.csv}: give the table with --csv")
    if not options.image_dir.is_dir():
        raise DataError(f"there is no folder {options.image_dir}: give that of the pictures with --image-dir")
    if not 0 < options.valid_share < 1:
        raise ConfigError(f"--valid-share is {options.valid_share}, which should be between 0 and 1")
    if len(set(options.splits)) != len(options.splits) or not 1 <= len(options.splits) <= 2:
        raise ConfigError(
            f"--splits is {','.join(options.splits)!r}: give one name, or two different ones such as train,valid"
        )
    check_split_names(options.splits, "--splits")


def _require_pictures(table: Iterable[TableRow], options: Options) -> None:
    """DataError with the first row whose picture is missing, the first such files, and how many there are."""
    first_rows: dict[str, int] = {}
    for row in table:
        if row.name not in first_rows:
            _require_below(row, options)
            first_rows[row.name] = row.row
    missing = [name for name in first_rows if not (options.image_dir / name).is_file()]
    if missing:
        shown = ", ".join(missing[:_MISSING_SHOWN]) + (", …" if len(missing) > _MISSING_SHOWN else "")
        raise DataError(
            f"{options.csv} row {first_rows[missing[0]]}, column {options.image_column}: {len(missing)} "
            f"file{'s'[: len(missing) != 1]} that {options.image_dir} does not have ({shown}); "
            "add the pictures or take the rows out"
        )


def _require_below(row: TableRow, options: Options) -> None:
    try:
        name_below(options.image_dir, row.name)
    except DataError as error:
        raise DataError(f"{options.csv} row {row.row}, column {options.image_column}: {error}") from error
