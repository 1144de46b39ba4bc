"""How many samples each shard has, so that a run can enter a set anywhere without reading up to there.

Known from, in this order: the file `counts` of the settings, img2dataset's `NAME_stats.json` beside a shard ("successes"), what an
earlier run counted (`tar_counts.json` beside local shards), and the headers of local shards.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from cn_clip.data.tars.samples import count_samples
from cn_clip.data.tars.shards import is_remote, open_shard
from cn_clip.errors import DataError
from cn_clip.files import write_atomically

logger = logging.getLogger(__name__)

COUNTED = "tar_counts.json"
"""{name of a shard: {"samples", "bytes", "modified_ns"}}: counts hold as long as the shard is as it was."""

Counts = dict[str, int]
"""URL of a shard -> number of its samples; one that is not known is missing."""


def given_counts(urls: list[str], names: list[str], counts: str | None) -> Counts:
    """What the file `counts` and img2dataset's statistics say, without touching a shard."""
    known = {} if counts is None else _from_file(counts, urls, names)
    for url, text in _stats([url for url in urls if url not in known]):
        successes = _field(text, "successes")
        if successes is not None:
            known[url] = successes
    return known


def counted(urls: Iterable[str]) -> Counts:
    """Counts of these local shards, each walked once in the life of its folder where that can be written to."""
    by_folder: dict[Path, list[Path]] = {}
    for url in urls:
        by_folder.setdefault(Path(url).parent, []).append(Path(url))
    return {
        str(path): count for folder, paths in by_folder.items() for path, count in _counted(folder, paths)
    }


def _counted(folder: Path, paths: list[Path]) -> list[tuple[Path, int]]:
    earlier = _earlier(folder / COUNTED)
    counts, walked = [], 0
    for path in paths:
        status = path.stat()
        entry = {"bytes": status.st_size, "modified_ns": status.st_mtime_ns}
        before = earlier.get(path.name)
        if not isinstance(before, dict) or not entry.items() <= before.items():
            entry["samples"] = count_samples(str(path))
            earlier[path.name], walked = entry, walked + 1
        counts.append((path, earlier[path.name]["samples"]))
    if walked:
        _keep(folder / COUNTED, earlier, walked)
    return counts


def _earlier(path: Path) -> dict[str, Any]:  # Any: what an earlier run wrote
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}  # not there yet, or not ours: the shards are walked again
    return found if isinstance(found, dict) else {}


def _keep(path: Path, entries: dict[str, Any], walked: int) -> None:  # Any: as in _earlier
    try:
        write_atomically(path, json.dumps(entries, ensure_ascii=False, indent=0, sort_keys=True).encode())
        logger.info("Counted the samples of %d shards; kept in %s.", walked, path)
    except OSError as error:
        logger.info("Counted the samples of %d shards; not kept, since %s.", walked, error)


def _from_file(counts: str, urls: list[str], names: list[str]) -> Counts:
    """`{shard: samples}`, where a shard goes by its URL, its name inside the set or its file name."""
    try:
        with open_shard(counts) as file:
            table = json.loads(file.read())
    except Exception as error:  # errors of fsspec's backends have no base class in common
        raise DataError(
            f"counts of the webdataset: cannot read {counts} ({type(error).__name__}: {error})"
        ) from error
    if not isinstance(table, dict):
        raise DataError(f'counts of the webdataset: {counts} is not {{"00000.tar": 9876, ...}}')
    known = {}
    for url, name in zip(urls, names, strict=True):
        count = next((table[key] for key in (url, name, url.rsplit("/", 1)[-1]) if key in table), None)
        if isinstance(count, dict):
            count = count.get("samples")  # the file that an earlier run kept
        if count is not None and type(count) is not int:
            raise DataError(
                f"counts of the webdataset: {counts} has {count!r} for {name}; give a number of samples"
            )
        if count is not None:
            known[url] = count
    return known


def _stats(urls: list[str]) -> list[tuple[str, bytes]]:
    """(URL of a shard, its statistics) for the shards that have some."""
    beside = {url: f"{url.removesuffix('.tar')}_stats.json" for url in urls}
    local = [
        (url, Path(path).read_bytes())
        for url, path in beside.items()
        if not is_remote(url) and Path(path).is_file()
    ]
    remote = {url: path for url, path in beside.items() if is_remote(url)}
    return local + (_remote_stats(remote) if remote else [])


def _remote_stats(beside: dict[str, str]) -> list[tuple[str, bytes]]:
    import fsspec  # slow to import, and only for remote sets

    texts: list[tuple[str, bytes]] = []
    by_store: dict[Any, dict[str, str]] = {}  # Any: fsspec is untyped
    for url, path in beside.items():
        files, inside = fsspec.core.url_to_fs(path)
        by_store.setdefault(files, {})[inside] = url
    for files, paths in by_store.items():
        # all at once where the backend can; what is not there is left out
        found = files.cat(list(paths), on_error="omit")
        texts += [(paths[path], text) for path, text in found.items()]
    return texts


def _field(text: bytes, name: str) -> int | None:
    try:
        found = json.loads(text)
    except ValueError:
        return None  # an unfinished file: the shard is counted in another way
    value = found.get(name) if isinstance(found, dict) else None
    return value if type(value) is int else None
