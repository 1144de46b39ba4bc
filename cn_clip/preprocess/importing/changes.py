"""Whether what an interrupted import has read is still the same, so that going on neither loses nor doubles a row.

Files on this machine are known by size and times, those elsewhere by what their store tells of them, and the rows of the part
that was under way, or of a part that is no file, by a digest of the rows themselves.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path

import xxhash

from cn_clip.errors import DataError
from cn_clip.preprocess.importing.items import (
    BadItem,
    Base64Content,
    BytesContent,
    Content,
    Item,
    Part,
    Picture,
    Source,
    Text,
)
from cn_clip.preprocess.importing.progress import Position, Progress
from cn_clip.preprocess.importing.run_options import RunOptions

_FORM = 2
"""Of what is kept in the working folder: an import that another version began is not taken up."""
_ASKED_AT_ONCE = 16
_TOLD_BY_STORES = frozenset(
    [
        "size",
        "ETag",
        "etag",
        "md5Hash",
        "content_md5",
        "checksum",
        "LastModified",
        "last_modified",
        "mtime",
        "modified",
        "updated",
        "created",
    ]
)
"""Names under which fsspec's backends give what changes with the content."""


def fingerprint(kind: str, settings: object, source: Source, options: RunOptions) -> str:
    """Equal for two runs that write the same; not asked of pictures, whose files may be mended meanwhile."""
    facts = [
        _FORM,
        kind,
        # the same words mean other files in another folder
        repr(settings),
        str(Path.cwd()) if _has_relative_path(settings) else "",
        options.max_px,
        [part.name for part in source.parts],
        [_look_of(path) for part in source.parts for path in part.files],
    ]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def _has_relative_path(settings: object) -> bool:
    if not dataclasses.is_dataclass(settings):
        return False
    values = [getattr(settings, field.name) for field in dataclasses.fields(settings)]
    flat = [item for value in values for item in (value if isinstance(value, tuple) else (value,))]
    return any(isinstance(item, Path) and not item.is_absolute() for item in flat)


def _look_of(path: Path) -> tuple[str, int, int, int]:
    try:
        status = path.stat()
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from error
    # the time of the last change of its entry too: copies may be given the old time of their content
    return str(path.absolute()), status.st_size, status.st_mtime_ns, status.st_ctime_ns


def require_unchanged(before: str, kind: str, settings: object, source: Source, options: RunOptions) -> None:
    """DataError when a file is no longer what it was when the import began."""
    if fingerprint(kind, settings, source, options) != before:
        files = [str(path) for part in source.parts for path in part.files]
        shown = files[0] if len(files) == 1 else f"one of {len(files)} files such as {files[0]}"
        raise DataError(f"{shown} has changed while it was read: run again when it is whole")


def store_mark(url: str) -> str:
    """What the store of a remote file tells of its content, "" where it tells nothing, or cannot be asked."""
    import fsspec  # slow to import, and only for remote files

    try:
        files, path = fsspec.core.url_to_fs(url)
        told = files.info(path)
    except (
        Exception
    ):  # errors of fsspec's backends have no base class in common; reading the file says what is wrong
        return ""
    return json.dumps(
        {name: str(told[name]) for name in sorted(_TOLD_BY_STORES) if told.get(name) is not None}
    )


class Trail:
    """Digest of the items of a part so far; the same for the same items in the same order."""

    def __init__(self, digest: str = "") -> None:
        self.digest = digest

    def add(self, item: Item) -> None:
        said = repr(_identity(item)).encode()  # ASCII escapes for whatever has no UTF-8
        self.digest = xxhash.xxh3_128_hexdigest(self.digest.encode() + said)


def _identity(item: Item) -> tuple[object, ...]:
    """Without the row on which it stands."""
    match item:
        case Picture():
            return item.key, item.name, item.split, _digest_of(item.content)
        case Text():
            return item.text, item.keys, item.text_id, item.split
        case BadItem():
            return (item.reason,)


def _digest_of(content: Content) -> str:
    """Of the picture, unless it has a file of its own, which may be mended."""
    match content:
        case BytesContent(picture):
            return xxhash.xxh3_128_hexdigest(picture)
        case Base64Content(text):
            return xxhash.xxh3_128_hexdigest(text)
    return ""


def rest_of(source: Source, position: Position, progress: Progress) -> Iterator[Item] | None:
    """What is left of the part that is under way; None when something that was read before has changed."""
    done = source.parts[: position.part]
    if not _same_listings(done, position) or not _same_in_store(done, progress):
        return None
    if position.part == len(source.parts):
        return iter(())
    items, trail = source.parts[position.part].items(), Trail()
    num_found, latest = 0, None
    for latest in islice(items, position.item):
        trail.add(latest)
        num_found += 1
    if num_found < position.item and isinstance(latest, BadItem):
        # a store that cannot be reached just now is no reason to give up what is done
        raise DataError(f"{latest.where}: {latest.reason}; run again when it can be read")
    return items if trail.digest == position.trail else None


def _same_listings(parts: Sequence[Part], position: Position) -> bool:
    """Whether the parts that are no files give the items that they gave."""
    for number, part in enumerate(parts):
        if not (part.files or part.url):
            trail = Trail()
            for item in part.items():
                trail.add(item)
            if trail.digest != position.listings.get(str(number)):
                return False
    return True


def _same_in_store(parts: Sequence[Part], progress: Progress) -> bool:
    kept = {number: progress.mark_of(number) for number, part in enumerate(parts) if part.url}
    known = [(parts[number].url or "", mark) for number, mark in kept.items() if mark]
    with ThreadPoolExecutor(_ASKED_AT_ONCE) as threads:
        now = threads.map(store_mark, [url for url, _ in known])
        return all(found in ("", mark) for found, (_, mark) in zip(now, known, strict=True))
