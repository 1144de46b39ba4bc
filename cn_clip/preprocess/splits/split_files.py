"""Which files a split is made of."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from pathlib import Path

from cn_clip.data.table_format import CAPTIONS_SUFFIX, PICTURES_SUFFIX
from cn_clip.errors import ConfigError, DataError


@dataclass(frozen=True)
class SplitFiles:
    """What a split is made of."""

    name: str
    pictures: Path
    captions: Path


def find_splits(data_dir: Path, splits: str, *, may_be_empty: bool = False) -> list[SplitFiles]:
    """The files of each split of a comma list, all there before anything is built; each name once, in the order given.

    `may_be_empty` is for rows that go behind others: captions of pictures that are there, or pictures without captions.
    """
    if not data_dir.is_dir():
        raise DataError(f"--data_dir {data_dir} is not a folder: give the one that holds the _imgs.tsv files")
    names = list(dict.fromkeys(name.strip() for name in splits.split(",") if name.strip()))
    if not names:
        raise ConfigError("--splits names no split: give a comma list, for example --splits train,valid,test")
    return [_find_split(data_dir, name, may_be_empty) for name in names]


def _find_split(data_dir: Path, name: str, may_be_empty: bool) -> SplitFiles:
    if name != Path(name).name or name.startswith("."):
        raise ConfigError(
            f"--splits: {name!r} cannot name a split; it is the part before _imgs.tsv, for example train"
        )
    files = SplitFiles(name, data_dir / f"{name}{PICTURES_SUFFIX}", data_dir / f"{name}{CAPTIONS_SUFFIX}")
    for path in (files.pictures, files.captions):
        if not path.is_file():
            raise DataError(f"{path} does not exist{_near_split(data_dir, name)}")
        if path.stat().st_size == 0 and not may_be_empty:
            raise DataError(f"{path} is empty: write it again, or leave {name} out of --splits")
    return files


def _near_split(data_dir: Path, name: str) -> str:
    there = sorted(path.name.removesuffix(PICTURES_SUFFIX) for path in data_dir.glob(f"*{PICTURES_SUFFIX}"))
    near = difflib.get_close_matches(name, [other for other in there if other != name], n=1)
    if near:
        return f": did you mean --splits {near[0]}?"
    return f": {data_dir} has {', '.join(there)}" if there else f": {data_dir} has no *_imgs.tsv at all"
