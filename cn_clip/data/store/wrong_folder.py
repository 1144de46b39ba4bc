"""What to do when a path is no split: all commands that read splits say it with these words.

Somebody who gives the folder of their pictures has built nothing that could be built again; what lies in the folder, or
near it, tells which step they are at.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from itertools import islice
from os.path import isdir, isfile
from pathlib import Path

from cn_clip.data.store import layout
from cn_clip.data.store.lmdb_folder import REBUILD
from cn_clip.data.table_format import CAPTIONS_SUFFIX, PICTURES_SUFFIX

_PICTURE_SUFFIXES = (".avif", ".bmp", ".gif", ".jfif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
_LMDB_FOLDER = "lmdb"
_IMPORTING_FOLDER = ".importing"
"""Where an import keeps what is not whole yet."""
_ENTRIES_SEEN = 10_000
"""A folder of millions of pictures has shown by then what it is."""
_FOLDERS_SEEN = 20
_EXAMPLE = "give the split's LMDB folder, for example DATAPATH/lmdb/train"


def next_step(path: Path, wanted: str = "") -> str:
    """The end of a sentence about `path`, which is no split, or with `wanted` not the folder of this name in one."""
    if isdir(path / layout.PAIRS_FOLDER) or isdir(path / layout.IMAGES_FOLDER):
        return f"give {path / wanted}" if isfile(path / wanted / "data.mdb") else REBUILD
    if isfile(path / "data.mdb"):
        return f"give {path.parent}, which holds both" if not wanted else REBUILD
    found = _splits_below(path, wanted) or _beside(path, wanted)
    if found is None and isdir(path):
        found = _by_content(path)
    elif found is None and path.suffix == ".tar":
        found = _read_tars(path)
    return found or _EXAMPLE + (f"/{wanted}" if wanted else "")


def _splits_below(path: Path, wanted: str) -> str | None:
    names = _splits_in(path)
    if names:
        return f"give one of its splits ({', '.join(names)}), for example {path / names[0] / wanted}"
    names = _splits_in(path / _LMDB_FOLDER)
    if names:
        others = f", or another of its splits ({', '.join(names)})" if len(names) > 1 else ""
        return f"give {path / _LMDB_FOLDER / names[0] / wanted}{others}"
    return None


def _beside(path: Path, wanted: str) -> str | None:
    """For the name of a split where its LMDB is not, or is not yet, and for one of its files."""
    if isdir(path):
        return None
    folder, name = path.parent, path.name.removesuffix(PICTURES_SUFFIX).removesuffix(CAPTIONS_SUFFIX)
    built = folder / _LMDB_FOLDER / name
    if isdir(built / layout.PAIRS_FOLDER):
        return f"give {built / wanted}"
    for data in (folder, folder.parent if folder.name == _LMDB_FOLDER else folder):
        if isfile(data / f"{name}{PICTURES_SUFFIX}"):
            return _build(data, [name])
    names = _splits_in(folder)
    if names:
        return (
            f"give one of the splits beside it ({', '.join(names)}), for example {folder / names[0] / wanted}"
        )
    return None


def _by_content(folder: Path) -> str | None:
    entries = _look(folder, _ENTRIES_SEEN)
    names = sorted(entry.name for entry in entries)
    splits = [name.removesuffix(PICTURES_SUFFIX) for name in names if name.endswith(PICTURES_SUFFIX)]
    if splits:
        return _build(folder, splits)
    if _IMPORTING_FOLDER in names:
        return "an import into it was not finished: run the same cn-clip import again"
    if any(name.endswith(".tar") for name in names):
        return _read_tars(folder)
    if any(name.endswith(".parquet") for name in names):
        return f"it holds parquet files: bring them in with cn-clip import parquet --files {folder}"
    if any(map(_is_picture, names)) or _has_folder_of_pictures(entries):
        return f"it holds pictures: bring them in with cn-clip import folder --image-dir {folder}"
    return None


def _build(data_dir: Path, names: Sequence[str]) -> str:
    ordered = sorted(names, key=_rank)
    return f"build it with build_lmdb_dataset.py --data_dir {data_dir} --splits {','.join(ordered)}"


def _read_tars(path: Path) -> str:
    return (
        f"for tars, train with data.train.type=webdataset and data.train.urls={path}, "
        f"or bring them in with cn-clip import webdataset --tars {path}"
    )


def _splits_in(folder: Path) -> list[str]:
    """Names of the splits that lie in it, `train` first."""
    names = [
        entry.name
        for entry in _look(folder, _ENTRIES_SEEN)
        if _is_folder(entry) and isdir(Path(entry, layout.PAIRS_FOLDER))
    ]
    return sorted(names, key=_rank)


def _rank(name: str) -> tuple[bool, str]:
    return name != "train", name


def _has_folder_of_pictures(entries: Sequence[os.DirEntry[str]]) -> bool:
    folders = islice(filter(_is_folder, entries), _FOLDERS_SEEN)
    return any(_is_picture(child.name) for folder in folders for child in _look(Path(folder), _FOLDERS_SEEN))


def _is_picture(name: str) -> bool:
    return name.lower().endswith(_PICTURE_SUFFIXES)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        # as the listing says: asking for each of many files takes long on a network file system
        return entry.is_dir() and not entry.name.startswith(".")
    except OSError:  # a link to itself
        return False


def _look(folder: Path, at_most: int) -> list[os.DirEntry[str]]:
    """The first entries; none of what is no folder, or cannot be read."""
    try:
        with os.scandir(folder) as entries:
            return list(islice(entries, at_most))
    except OSError:
        return []
