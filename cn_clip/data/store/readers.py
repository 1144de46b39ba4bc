"""Pairs and pictures of a split, read by position and by id, in both formats of `layout`."""

from __future__ import annotations

import json
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

from cn_clip.data.store import layout
from cn_clip.data.store.lmdb_folder import REBUILD, LmdbFolder
from cn_clip.errors import DataError


@dataclass(frozen=True, slots=True)
class PairRecord:
    """One caption and the picture it belongs to."""

    image_id: int
    text_id: int
    caption: str
    """As it was written; `captions.preprocess_text` makes it ready for the tokenizer."""


class _Store:
    """A folder of one kind whose format and count were read once; opening for reading happens in the process that reads."""

    kind: str

    def __init__(self, path: str | PathLike[str]) -> None:
        self.path = Path(path)
        self._folder = LmdbFolder(self.path)
        self.version, self._count = _read_format(self._folder, self.kind)
        self._folder.close()

    def __len__(self) -> int:
        return self._count


class PairStore(_Store):
    """The pairs of `{split}/pairs` by position, 0 to `len() - 1`. Picklable."""

    kind = layout.PAIRS_FORMAT

    def read(self, index: int) -> PairRecord:
        """Pair at this position; IndexError outside the store, DataError for a damaged value."""
        if not 0 <= index < self._count:
            raise IndexError(f"{self.path} has {self._count} pairs, no pair {index}")
        value = self._folder.get(layout.number_key(index))
        if value is None:
            raise DataError(f"{self.path} has no pair {index}, though it counts {self._count}: {REBUILD}")
        decode = layout.decode_pair if self.version == layout.VERSION else layout.decode_reference_pair
        try:
            return PairRecord(*decode(value))
        except (ValueError, RecursionError) as error:
            raise DataError(f"pair {index} of {self.path} cannot be read ({error}): {REBUILD}") from error


class ImageStore(_Store):
    """The encoded pictures of `{split}/imgs` by image id. Picklable."""

    kind = layout.IMAGES_FORMAT

    def read(self, image_id: int) -> bytes:
        """The picture as it came (JPEG, PNG, …); DataError names the id when it is missing or no base64."""
        value = self._folder.get(layout.number_key(image_id))
        if value is None:
            raise DataError(
                f"{self.path} has no picture with id {image_id}: add it to the split's _imgs.tsv and {REBUILD}"
            )
        if self.version == layout.VERSION:
            return value
        try:
            return layout.decode_reference_picture(value)
        except ValueError as error:
            raise DataError(
                f"picture {image_id} of {self.path} is not base64 ({error}): {REBUILD}"
            ) from error

    def ids(self) -> list[int]:
        """Every image id in key order, which is that of their decimal strings: 1, 10, 2."""
        names = (layout.META_KEY, layout.COUNT_KEYS[self.kind])
        try:
            return [int(key) for key in self._folder.walk_keys() if key not in names]
        except ValueError as error:
            raise DataError(
                f"{self.path} holds a picture id that is not a whole number ({error}): number the pictures and {REBUILD}"
            ) from error


@dataclass(frozen=True)
class Split:
    """Pairs and pictures of one split."""

    pairs: PairStore
    images: ImageStore


def open_split(path: str | PathLike[str]) -> Split:
    """The split in this folder, of either format; DataError says what is missing and how to get it."""
    folder = Path(path)
    if not folder.is_dir():
        raise DataError(
            f"{folder} is not a folder: give the split's LMDB folder, for example DATAPATH/lmdb/train"
        )
    missing = [name for name in (layout.PAIRS_FOLDER, layout.IMAGES_FOLDER) if not (folder / name).is_dir()]
    if missing:
        raise DataError(
            f"{folder} has no {' and no '.join(f'{name}/' for name in missing)} folder{_hint(folder)}"
        )
    return Split(PairStore(folder / layout.PAIRS_FOLDER), ImageStore(folder / layout.IMAGES_FOLDER))


def _hint(folder: Path) -> str:
    if (folder / "data.mdb").exists():
        return f": give {folder.parent}, which holds both"
    splits = sorted(child.name for child in folder.iterdir() if (child / layout.PAIRS_FOLDER).is_dir())
    visible = [name for name in splits if not name.startswith(".")]
    if visible:
        return f": give one of its splits ({', '.join(visible)})"
    return f": {REBUILD}"


def _read_format(folder: LmdbFolder, kind: str) -> tuple[int, int]:
    """(format version, count) of a store that is of this kind."""
    meta = folder.get(layout.META_KEY)
    if meta is not None:
        return _read_meta(folder.folder, kind, meta)
    count = folder.get(layout.COUNT_KEYS[kind])
    if count is None:
        raise DataError(_why_no_count(folder, kind))
    if not count.isdigit():
        raise DataError(f"{folder.folder} has no readable count ({count!r:.60}): {REBUILD}")
    # the reference counts the rows of the TSV, which are more than its keys when an id is given twice
    return 1, folder.num_entries() - 1 if kind == layout.IMAGES_FORMAT else int(count)


def _read_meta(path: Path, kind: str, value: bytes) -> tuple[int, int]:
    try:
        meta = json.loads(value)
        found, version, count = meta["format"], meta["version"], int(meta["count"])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise DataError(f"{path} has a `meta` that cannot be read: {REBUILD}") from error
    if found != kind:
        raise DataError(
            f"{path} holds {found!r}, but {kind!r} are needed here: pairs/ and imgs/ may be swapped"
        )
    if version != layout.VERSION:
        raise DataError(
            f"{path} has format {version}, this cn_clip reads up to {layout.VERSION}: use a newer cn_clip"
        )
    return version, count


def _why_no_count(folder: LmdbFolder, kind: str) -> str:
    others = [
        other for other, key in layout.COUNT_KEYS.items() if other != kind and folder.get(key) is not None
    ]
    if others:
        return f"{folder.folder} holds {others[0]!r}, but {kind!r} are needed here: pairs/ and imgs/ may be swapped"
    return f"{folder.folder} was never finished (it has no {layout.COUNT_KEYS[kind].decode()}): {REBUILD}"
