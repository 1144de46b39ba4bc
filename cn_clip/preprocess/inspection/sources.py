"""Where pairs come from: an LMDB split or a TSV with its JSONL, told apart by what lies in the folder.

A source hands out stretches of itself, so that workers share one pass. It is picklable and holds nothing open.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from cn_clip.data.store import PairColumns
from cn_clip.data.store.wrong_folder import next_step
from cn_clip.errors import DataError

_USUAL = ("train", "valid", "test")
PICTURES_SUFFIX, CAPTIONS_SUFFIX = "_imgs.tsv", "_texts.jsonl"


@dataclass(frozen=True)
class Stretch:
    """Rows for one worker to read at a time: of the numbers in `chosen`, or of a file from byte `first` to `last`."""

    first: int
    last: int
    chosen: NDArray[np.int64] | None = None
    weight: int = 1
    """What a progress bar adds when it is done."""


@dataclass(frozen=True, slots=True)
class RawPicture:
    place: int
    """What `Source.picture` needs to find it again."""
    image_id: int
    picture: bytes


@dataclass(frozen=True, slots=True)
class RawCaption:
    place: int
    """What `Source.caption` needs to find it again."""
    text_id: int
    text: str
    image_ids: tuple[int, ...]
    """Empty for a caption that makes no pair."""
    repeats: bool = False
    """The text of the row before, for another picture."""
    tokens: NDArray[np.uint16] | None = None
    """As the split has them cached, without [CLS] and [SEP]."""


@dataclass(frozen=True, slots=True)
class Unusable:
    """A row that gives no picture or caption."""

    place: int
    reason: str
    image_id: int | None = None
    """Of a picture whose id can be read."""


class Source(Protocol):
    name: str
    """Of the split."""
    path: Path
    """LMDB folder, or the TSV up to its `_imgs.tsv`: no two splits have the same."""
    kind: str
    caption_unit: str
    """What the weights of stretches count, for the bars."""
    picture_unit: str

    def caption_stretches(self, chosen: NDArray[np.int64] | None) -> Sequence[Stretch]:
        """All captions, or the pairs with these numbers where a source has them by number."""
        ...

    def picture_stretches(self, wanted: NDArray[np.int64] | None) -> Sequence[Stretch]:
        """All pictures, or those with the sorted ids `wanted`."""
        ...

    def captions(self, stretch: Stretch) -> Iterator[RawCaption | Unusable]: ...

    def pictures(self, stretch: Stretch) -> Iterator[RawPicture | Unusable]: ...

    def caption(self, place: int) -> str: ...

    def picture(self, place: int, image_id: int) -> bytes: ...

    def name_caption(self, place: int) -> str:
        """Where a caption stands, for a person to find it; places in ascending order cost least."""
        ...

    def name_picture(self, place: int, image_id: int | None) -> str: ...

    def num_pairs_by_number(self) -> int | None:
        """Where pairs can be read by number: how many there are."""
        ...

    def columns(self) -> PairColumns | None:
        """Ids of all pairs, where they can be had without looking at every caption. DataError when they are damaged."""
        ...

    def why_rebuild(self) -> str | None:
        """Why this split had better be built anew, or None."""
        ...


def find_sources(data: Path, split: str | None) -> list[Source]:
    """The splits at `data`: an LMDB split, a folder of several, a folder of TSV and JSONL, or such a folder and a name."""
    from cn_clip.preprocess.inspection.lmdb_source import LmdbSource
    from cn_clip.preprocess.inspection.table_source import TableSource

    if split is not None:
        return find_sources(data / split, None)
    if not data.exists() and _names_table(data):
        return [TableSource(data)]
    if data.is_file() and data.name.endswith((PICTURES_SUFFIX, CAPTIONS_SUFFIX)):
        stem = data.name.removesuffix(PICTURES_SUFFIX).removesuffix(CAPTIONS_SUFFIX)
        return [TableSource(data.with_name(stem))]
    if not data.exists():
        raise DataError(f"{data} does not exist{tell_names(data.parent) or f': {next_step(data)}'}")
    tables = _tables_in(data)
    if tables:
        return [TableSource(data / name) for name in sorted(tables, key=_rank)]
    stores = _stores_in(data)
    if stores:
        return [LmdbSource(store) for store in sorted(stores, key=lambda store: _rank(store.name))]
    # its sentence says what is missing
    return [LmdbSource(data)]


def _rank(name: str) -> tuple[int, str]:
    """In the order of a project: training, validation, test, then the rest by name."""
    return (_USUAL.index(name) if name in _USUAL else len(_USUAL)), name


def _names_table(path: Path) -> bool:
    return any(path.with_name(path.name + suffix).is_file() for suffix in (PICTURES_SUFFIX, CAPTIONS_SUFFIX))


def names_in(folder: Path) -> list[str]:
    """Names of the splits in a folder, whatever they are stored as."""
    return sorted({*_tables_in(folder), *(path.name for path in _stores_in(folder))}, key=_rank)


def _tables_in(folder: Path) -> list[str]:
    return [path.name.removesuffix(PICTURES_SUFFIX) for path in folder.glob(f"*{PICTURES_SUFFIX}")]


def _stores_in(folder: Path) -> list[Path]:
    if not folder.is_dir() or any((folder / name / "data.mdb").exists() for name in ("pairs", "imgs")):
        return []
    return [
        child
        for child in folder.iterdir()
        if not child.name.startswith(".") and ((child / "pairs").is_dir() or (child / "imgs").is_dir())
    ]


def tell_names(folder: Path) -> str:
    """The end of a sentence about a split that is not in this folder; empty where none is."""
    names = names_in(folder)
    return f": {folder} has {', '.join(names)}" if names else ""
