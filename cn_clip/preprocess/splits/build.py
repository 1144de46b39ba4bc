"""One split's TSV and JSONL to its LMDB."""

from __future__ import annotations

import difflib
import warnings
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from cn_clip.data.captions import Caption, read_captions
from cn_clip.data.store import SplitWriter
from cn_clip.data.store.layout import Format
from cn_clip.errors import ConfigError, DataError
from cn_clip.preprocess.splits.picture_rows import read_pictures

_MISSING_SHOWN = 5
_BLOCK_PAIRS = 100_000


@dataclass(frozen=True)
class SplitFiles:
    """What a split is made of."""

    name: str
    pictures: Path
    captions: Path


@dataclass(frozen=True, kw_only=True)
class SplitReport:
    """What a build found."""

    num_images: int
    num_pairs: int
    num_captions: int
    num_repeats: int
    """Rows of a picture that was there already, byte for byte."""
    num_unpaired: int
    """Captions without image ids: they make no pair."""
    num_blank_lines: int
    """Empty lines between the rows of both files."""


def find_splits(data_dir: Path, splits: str) -> list[SplitFiles]:
    """The files of each split of a comma list, all there before anything is built; each name once, in the order given."""
    if not data_dir.is_dir():
        raise DataError(f"--data_dir {data_dir} is not a folder: give the one that holds the _imgs.tsv files")
    names = list(dict.fromkeys(name.strip() for name in splits.split(",") if name.strip()))
    if not names:
        raise ConfigError("--splits names no split: give a comma list, for example --splits train,valid,test")
    return [_find_split(data_dir, name) for name in names]


def _find_split(data_dir: Path, name: str) -> SplitFiles:
    if name != Path(name).name or name.startswith("."):
        raise ConfigError(
            f"--splits: {name!r} cannot name a split; it is the part before _imgs.tsv, for example train"
        )
    files = SplitFiles(name, data_dir / f"{name}_imgs.tsv", data_dir / f"{name}_texts.jsonl")
    for path in (files.pictures, files.captions):
        if not path.is_file():
            raise DataError(f"{path} does not exist{_near_split(data_dir, name)}")
        if path.stat().st_size == 0:
            raise DataError(f"{path} is empty: write it again, or leave {name} out of --splits")
    return files


def _near_split(data_dir: Path, name: str) -> str:
    there = sorted(path.name.removesuffix("_imgs.tsv") for path in data_dir.glob("*_imgs.tsv"))
    near = difflib.get_close_matches(name, [other for other in there if other != name], n=1)
    if near:
        return f": did you mean --splits {near[0]}?"
    return f": {data_dir} has {', '.join(there)}" if there else f": {data_dir} has no *_imgs.tsv at all"


def build_split(files: SplitFiles, lmdb_dir: Path, format: Format) -> SplitReport:
    """Check every row and write `lmdb_dir/{name}`, replacing an older one at the very end. DataError names the row."""
    with SplitWriter(lmdb_dir / files.name, format) as writer:
        # captions first: they are the smaller file, and a mistake in them should not show after hours of pictures
        captions = _add_pairs(files, writer)
        pictures = _add_pictures(files, writer)
        _require_pictures(files, writer.image_ids())
    return SplitReport(
        num_images=writer.num_images,
        num_pairs=writer.num_pairs,
        num_captions=captions.num_rows,
        num_repeats=writer.num_repeats,
        num_unpaired=captions.num_unpaired,
        num_blank_lines=captions.num_blank_lines + pictures.num_blank_lines,
    )


@dataclass(frozen=True)
class _Seen:
    num_rows: int
    num_blank_lines: int
    num_unpaired: int = 0


def _add_pairs(files: SplitFiles, writer: SplitWriter) -> _Seen:
    num_rows = num_unpaired = last_row = 0
    for caption in _with_bar(read_captions(files.captions), files.captions):
        num_rows, last_row = num_rows + 1, caption.row
        num_unpaired += not caption.image_ids
        for image_id in caption.image_ids:
            writer.add_pair(image_id, caption.text_id, caption.text)
    if num_rows == 0:
        raise DataError(f"{files.captions} has only blank lines: write one caption per line")
    return _Seen(num_rows, last_row - num_rows, num_unpaired)


def _with_bar(rows: Iterable[Caption], path: Path) -> Iterable[Caption]:
    return tqdm(rows, desc=path.name, unit=" rows", disable=None)  # None: only on a terminal


def _add_pictures(files: SplitFiles, writer: SplitWriter) -> _Seen:
    path = files.pictures
    num_rows = last_row = 0
    bar = tqdm(total=path.stat().st_size, desc=path.name, unit="B", unit_scale=True, disable=None)
    with bar, warnings.catch_warnings():
        # PIL remarks on odd metadata without saying of which row
        warnings.filterwarnings("ignore", module=r"PIL\.")
        for picture in read_pictures(path):
            num_rows, last_row = num_rows + 1, picture.row
            writer.add_image(picture.image_id, picture.picture, f"{path} row {picture.row}")
            bar.update(picture.num_bytes)
    if num_rows == 0:
        raise DataError(f"{path} has only blank lines: write one picture per line")
    return _Seen(num_rows, last_row - num_rows)


def _require_pictures(files: SplitFiles, known_ids: NDArray[np.int64]) -> None:
    """DataError with the first row that names a picture the TSV lacks, the first such ids, and how many there are."""
    missing: dict[int, int] = {}
    for rows, image_ids in _in_blocks(read_captions(files.captions)):
        places = np.searchsorted(known_ids, image_ids).clip(max=len(known_ids) - 1)
        for place in np.flatnonzero(known_ids[places] != image_ids):
            missing.setdefault(image_ids[place], rows[place])
    if not missing:
        return
    first_row = next(iter(missing.values()))
    shown = ", ".join(str(image_id) for image_id in list(missing)[:_MISSING_SHOWN])
    more = ", …" if len(missing) > _MISSING_SHOWN else ""
    raise DataError(
        f"{files.captions} row {first_row}, field image_ids: {len(missing)} picture "
        f"id{'s'[: len(missing) != 1]} that {files.pictures.name} does not have ({shown}{more}); "
        "add the pictures or take the ids out of the captions"
    )


def _in_blocks(captions: Iterable[Caption]) -> Iterator[tuple[array[int], array[int]]]:
    """(row, image id) of every pair, as two arrays of some thousands."""
    rows, image_ids = array("q"), array("q")
    for caption in captions:
        rows.extend([caption.row] * len(caption.image_ids))
        image_ids.extend(caption.image_ids)
        if len(rows) >= _BLOCK_PAIRS:
            yield rows, image_ids
            rows, image_ids = array("q"), array("q")
    yield rows, image_ids
