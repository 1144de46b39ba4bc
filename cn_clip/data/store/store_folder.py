"""What the stores of a split have in common: an LMDB folder whose format and count were read once."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path

from cn_clip.data.store import layout
from cn_clip.data.store.lmdb_folder import REBUILD, LmdbFolder
from cn_clip.data.store.wrong_folder import next_step
from cn_clip.errors import DataError


@dataclass(frozen=True)
class Meta:
    """What a folder says of itself."""

    version: int
    count: int
    fields: Mapping[str, object] = field(default_factory=dict)
    """All of it; nothing for the reference's format."""

    def text(self, name: str) -> str | None:
        value = self.fields.get(name)
        return value if isinstance(value, str) else None


class StoreFolder:
    """A folder of one kind; opening for reading happens in the process that reads."""

    kind: str

    def __init__(self, path: str | PathLike[str]) -> None:
        self.path = Path(path)
        _require_lmdb(self.path, self.kind)
        self._folder = LmdbFolder(self.path)
        self.meta = _read_format(self._folder, self.kind)
        self._folder.close()

    def __len__(self) -> int:
        return self.meta.count

    @property
    def version(self) -> int:
        """Of the format: 1 is the reference's."""
        return self.meta.version

    @property
    def content(self) -> str | None:
        """Digest of what was written; None when it was before there were any."""
        return self.meta.text("content")


def read_count(value: object) -> int:
    """A count that JSON held; ValueError for what cannot be one."""
    if type(value) is not int or value < 0:  # `True` is an int too, but no count
        raise ValueError(f"{value!r:.40} is no count")
    return value


def _require_lmdb(path: Path, kind: str) -> None:
    try:
        (path / "data.mdb").stat()
    except FileNotFoundError as error:
        why = "is not an LMDB folder (it has no data.mdb)" if path.is_dir() else "does not exist"
        raise DataError(f"{path} {why}: {next_step(path, layout.FOLDERS[kind])}") from error
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from error


def _read_format(folder: LmdbFolder, kind: str) -> Meta:
    """Of a store that is of this kind and may have as many entries as it counts."""
    meta = _read_any_format(folder, kind)
    if meta.count > folder.num_entries():
        raise DataError(
            f"{folder.folder} is damaged (it counts {meta.count}, but has only {folder.num_entries()} entries): {REBUILD}"
        )
    return meta


def _read_any_format(folder: LmdbFolder, kind: str) -> Meta:
    meta = folder.get(layout.META_KEY)
    if meta is not None:
        return _read_meta(folder.folder, kind, meta)
    if kind not in layout.COUNT_KEYS:
        raise DataError(f"{folder.folder} was never finished (it has no meta): {REBUILD}")
    count = folder.get(layout.COUNT_KEYS[kind])
    if count is None:
        raise DataError(_why_no_count(folder, kind))
    try:
        num_rows = int(count) if count.isdigit() else None
    except ValueError:  # thousands of digits
        num_rows = None
    if num_rows is None:
        raise DataError(f"{folder.folder} has no readable count ({count!r:.60}): {REBUILD}")
    # the reference counts the rows of the TSV, which are more than its keys when an id is given twice
    return Meta(1, folder.num_entries() - 1 if kind == layout.IMAGES_FORMAT else num_rows)


def _read_meta(path: Path, kind: str, value: bytes) -> Meta:
    try:
        fields = json.loads(value)
        found, version, count = fields["format"], fields["version"], read_count(fields["count"])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise DataError(f"{path} has a `meta` that cannot be read: {REBUILD}") from error
    if found != kind:
        raise DataError(
            f"{path} holds {found!r}, but {kind!r} are needed here: the folders of the split may be swapped"
        )
    if version != layout.VERSION:
        raise DataError(
            f"{path} has format {version}, this cn_clip reads up to {layout.VERSION}: use a newer cn_clip"
        )
    return Meta(version, count, fields)


def _why_no_count(folder: LmdbFolder, kind: str) -> str:
    others = [
        other for other, key in layout.COUNT_KEYS.items() if other != kind and folder.get(key) is not None
    ]
    if others:
        return f"{folder.folder} holds {others[0]!r}, but {kind!r} are needed here: pairs/ and imgs/ may be swapped"
    return f"{folder.folder} was never finished (it has no {layout.COUNT_KEYS[kind].decode()}): {REBUILD}"
