"""How many samples each shard has, so that a run can enter a set anywhere without reading up to there.

Known from, in this order: the file `counts` of the settings, img2dataset's `NAME_stats.json` beside a shard ("successes"), what an
earlier run counted (`tar_counts.json` beside local shards), and the headers of local shards.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from cn_clip.data.tars.samples import count_samples
from cn_clip.data.tars.shards import check_address, is_remote, named, open_shard
from cn_clip.errors import DataError
from cn_clip.files import write_atomically

logger = logging.getLogger(__name__)

COUNTED = "tar_counts.json"
"""{name of a shard: {"samples", "bytes", "modified_ns"}}: counts hold as long as the shard is as it was."""

_MOST_SAMPLES = 1 << 48

Counts = dict[str, int]
"""URL of a shard -> number of its samples; one that is not known is missing."""


def given_counts(urls: list[str], names: list[str], counts: str | None, *, is_needed: bool = True) -> Counts:
    """What the file `counts` and img2dataset's statistics say, without touching a shard.

    Statistics that a store does not hand out are a DataError, or a warning where a run goes without.
    """
    known = {} if counts is None else _from_file(counts, urls, names)
    texts = dict(_stats([url for url in urls if url not in known]))
    failed = next(((url, text) for url, text in texts.items() if isinstance(text, Exception)), None)
    if failed is not None:
        sentence = f"cannot look for {_stats_of(failed[0])} ({named(failed[1])})"
        if is_needed:
            raise DataError(f"{sentence}: set counts of data.train") from failed[1]
        logger.warning("%s; the samples of such shards are counted where a run is resumed.", sentence)
    for url, text in texts.items():
        successes = None if isinstance(text, Exception) else _field(text, "successes")
        if successes is not None:
            known[url] = successes
    return known


def counted(urls: Iterable[str]) -> Counts:
    """Counts of these local shards, each walked once in the life of its folder where that can be written to."""
    by_folder: dict[Path, list[str]] = {}
    for url in urls:
        by_folder.setdefault(Path(url).parent, []).append(url)
    counts: Counts = {}
    for folder, of_folder in by_folder.items():
        counts |= _counted(folder, of_folder)
    return counts


def _counted(folder: Path, urls: list[str]) -> Counts:
    entries = _earlier(folder / COUNTED)
    names = {url: Path(url).name for url in urls}
    now = {url: _state(Path(url)) for url in urls}
    changed = [url for url in urls if not _is_of(entries.get(names[url]), now[url])]
    if changed:
        logger.info("Counting the samples of %d shards in %s ...", len(changed), folder)
        for url in changed:
            entries[names[url]] = now[url] | {"samples": count_samples(url)}
        _keep(folder / COUNTED, entries)
    return {url: entries[names[url]]["samples"] for url in urls}


def _state(path: Path) -> dict[str, int]:
    status = path.stat()
    return {"bytes": status.st_size, "modified_ns": status.st_mtime_ns}


def _is_of(entry: object, state: dict[str, int]) -> bool:
    """Whether an earlier count is of the file as it is now."""
    return isinstance(entry, dict) and _is_count(entry.get("samples")) and state.items() <= entry.items()


def _is_count(value: object) -> bool:
    return type(value) is int and 0 <= value <= _MOST_SAMPLES


def _earlier(path: Path) -> dict[str, Any]:  # Any: what an earlier run wrote
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}  # not there yet, or not ours: the shards are walked again
    return found if isinstance(found, dict) else {}


def _keep(path: Path, entries: dict[str, Any]) -> None:  # Any: as in _earlier
    try:
        write_atomically(path, json.dumps(entries, ensure_ascii=False, indent=0, sort_keys=True).encode())
    except OSError as error:
        logger.info("The counts are not kept for the next run: %s.", error)


def _from_file(counts: str, urls: list[str], names: list[str]) -> Counts:
    """`{shard: samples}`, where a shard goes by its URL, its name inside the set or its file name."""
    if is_remote(counts):
        check_address(counts, "counts of data.train")
    try:
        with open_shard(counts) as file:
            table = json.loads(file.read())
    except Exception as error:  # errors of fsspec's backends have no base class in common
        raise DataError(f"counts of data.train: cannot read {counts} ({named(error)})") from error
    if not isinstance(table, dict):
        raise DataError(f'counts of data.train: {counts} is not {{"00000.tar": 9876, ...}}')
    known = {}
    for url, name in zip(urls, names, strict=True):
        count = next((table[key] for key in (url, name, url.rsplit("/", 1)[-1]) if key in table), None)
        if isinstance(count, dict):
            count = count.get("samples")  # the file that an earlier run kept
        if count is not None and not _is_count(count):
            raise DataError(
                f"counts of data.train: {counts} has {count!r} for {name}; give a number of samples"
            )
        if count is not None:
            known[url] = count
    return known


def _stats_of(url: str) -> str:
    return f"{url.removesuffix('.tar')}_stats.json"


def _stats(urls: list[str]) -> Iterator[tuple[str, bytes | Exception]]:
    """(URL of a shard, its statistics or why they cannot be had) for the shards that have some."""
    # behind another ending stands a signature, which is for the one file
    beside = {url: _stats_of(url) for url in urls if url.endswith(".tar")}
    for url, path in beside.items():
        if not is_remote(url) and Path(path).is_file():
            yield url, Path(path).read_bytes()
    remote = {url: path for url, path in beside.items() if is_remote(url)}
    if remote:
        yield from _remote_stats(remote)


def _remote_stats(beside: dict[str, str]) -> Iterator[tuple[str, bytes | Exception]]:
    import fsspec  # slow to import, and only for remote sets

    by_store: dict[Any, dict[str, str]] = {}  # Any: fsspec is untyped
    try:
        for url, path in beside.items():
            files, inside = fsspec.core.url_to_fs(path)
            by_store.setdefault(files, {})[inside] = url
        for files, paths in by_store.items():
            # all at once where the backend can
            for path, text in files.cat(list(paths), on_error="return").items():
                if not isinstance(text, FileNotFoundError):
                    yield paths[path], text
    except Exception as error:  # errors of fsspec's backends have no base class in common
        yield next(iter(beside)), error


def _field(text: bytes, name: str) -> int | None:
    try:
        found = json.loads(text)
    except ValueError:
        return None  # an unfinished file: the shard is counted in another way
    value = found.get(name) if isinstance(found, dict) else None
    return value if _is_count(value) else None
