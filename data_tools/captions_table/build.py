"""From the table and its pictures to `{split}_imgs.tsv`, `{split}_texts.jsonl` and `{split}_image_ids.json`.

A picture gets the number of its place among the sorted file names, so that ids are whole numbers and the same table
gives the same ids; all its captions go to one split, so that no picture of training is in validation.
"""

from __future__ import annotations

import base64
import json
import os
import random
import warnings
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from tqdm import tqdm

from cn_clip.errors import ConfigError, DataError
from cn_clip.files import atomic_path
from cn_clip.preprocess.splits.picture_check import find_fault
from data_tools.captions_table.table import Columns, TableRow, read_table

IDS_FILE = "_image_ids.json"
"""End of the name: of each split one, since splits may come from tables of their own."""
_MISSING_SHOWN = 5


@dataclass(frozen=True, kw_only=True)
class Options:
    csv: Path
    image_dir: Path
    output_dir: Path
    columns: Columns = Columns()
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
    table = read_table(options.csv, options.columns)
    _require_pictures(table, options)
    rows = _without_repeats(table)
    image_ids = {name: image_id for image_id, name in enumerate(sorted({row.name for row in rows}))}
    names = split_names(list(image_ids), options)
    _make_folder(options.output_dir)
    with ExitStack() as files:  # nothing takes its name before everything is written
        bar = files.enter_context(tqdm(total=len(image_ids), unit=" pictures", disable=None))
        for split, chosen in names.items():
            images = files.enter_context(_whole_file(options.output_dir / f"{split}_imgs.tsv"))
            texts = files.enter_context(_whole_file(options.output_dir / f"{split}_texts.jsonl"))
            ids = files.enter_context(_whole_file(options.output_dir / f"{split}{IDS_FILE}"))
            by_id = {str(image_ids[name]): name for name in sorted(chosen)}
            ids.write(json.dumps(by_id, ensure_ascii=False, indent=0).encode() + b"\n")
            texts.writelines(_caption_lines(rows, chosen, image_ids))
            for line in _picture_lines(rows, chosen, image_ids, options):
                images.write(line)
                bar.update()
    return Summary(
        num_pictures={split: len(chosen) for split, chosen in names.items()},
        num_texts={split: sum(row.name in chosen for row in rows) for split, chosen in names.items()},
        num_repeats=len(table) - len(rows),
    )


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
    for split in options.splits:
        if not split or split != Path(split).name or split.startswith("."):
            raise ConfigError(f"--splits: {split!r} cannot name a split; give for example train,valid")


def _require_pictures(table: Iterable[TableRow], options: Options) -> None:
    """DataError with the first row whose picture is missing, the first such files, and how many there are."""
    first_rows: dict[str, int] = {}
    for row in table:
        first_rows.setdefault(row.name, row.row)
    missing = [name for name in first_rows if not (options.image_dir / name).is_file()]
    if missing:
        shown = ", ".join(missing[:_MISSING_SHOWN]) + (", …" if len(missing) > _MISSING_SHOWN else "")
        raise DataError(
            f"{options.csv} row {first_rows[missing[0]]}, column {options.columns.image}: {len(missing)} "
            f"file{'s'[: len(missing) != 1]} that {options.image_dir} does not have ({shown}); "
            "add the pictures or take the rows out"
        )


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"cannot make the folder --output-dir {folder}: {error.strerror}") from error
    if not os.access(folder, os.W_OK):
        raise DataError(f"the folder --output-dir {folder} is not writable: choose another")


@contextmanager
def _whole_file(path: Path) -> Iterator[BinaryIO]:
    with atomic_path(path) as partial, partial.open("wb") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())


def _caption_lines(
    rows: Iterable[TableRow], chosen: Collection[str], image_ids: Mapping[str, int]
) -> Iterator[bytes]:
    for text_id, row in enumerate(rows):  # counted through all splits: a text id is of one split only
        if row.name in chosen:
            caption = {"text_id": text_id, "text": row.caption, "image_ids": [image_ids[row.name]]}
            yield json.dumps(caption, ensure_ascii=False).encode() + b"\n"


def _picture_lines(
    rows: Iterable[TableRow], chosen: Collection[str], image_ids: Mapping[str, int], options: Options
) -> Iterator[bytes]:
    """One line for each picture, in the order of ids; the file's bytes as they are."""
    first_rows = {row.name: row.row for row in reversed(list(rows))}
    for name in sorted(chosen):
        where = f"{options.csv} row {first_rows[name]}, column {options.columns.image}"
        yield b"%d\t%s\n" % (
            image_ids[name],
            base64.b64encode(_read_picture(options.image_dir / name, where)),
        )


def _read_picture(path: Path, where: str) -> bytes:
    try:
        picture = path.read_bytes()
    except OSError as error:
        raise DataError(f"{where}: cannot read {path}: {error.strerror}") from error
    with warnings.catch_warnings():
        # PIL remarks on odd metadata without saying of which file
        warnings.filterwarnings("ignore", module=r"PIL\.")
        fault = find_fault(picture)
    if fault is not None:
        raise DataError(f"{where}: {path}: {fault}; mend the file or take the row out")
    return picture
