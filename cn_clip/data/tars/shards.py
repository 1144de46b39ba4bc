"""Which shards a set has, and how one is opened: local files, or whatever `fsspec` reaches."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from glob import glob, has_magic
from itertools import takewhile
from pathlib import Path
from typing import BinaryIO, cast

from cn_clip.errors import ConfigError, DataError

BUFFER_BYTES = 1 << 17
_SCHEME = re.compile(r"([a-z][a-z0-9+.-]*)(?:::.*)?://", re.DOTALL | re.IGNORECASE)
# By list, since fsspec also opens what is more than a place: `reference:` runs the templates of a file in its older
# versions, others start programs or log in.
_STORES = (
    "http",
    "https",
    "s3",
    "s3a",
    "gs",
    "gcs",
    "az",
    "abfs",
    "abfss",
    "oss",
    "hf",
    "hdfs",
    "memory",
    "file",
)
_WEB = re.compile(r"(?:^|::)https?://")
_GONE = (404, 410)  # answers of a web server
_CACHES = ("simplecache", "filecache")
_GLOB = re.compile(r"[*\[]")
_RANGE = re.compile(r"\{(?:(?P<first>\d+)\.\.(?P<last>\d+)|(?P<words>[^{},]*(?:,[^{},]*)+))\}")


@dataclass(frozen=True, slots=True)
class Shard:
    url: str
    name: str
    """Inside the set; ids are made of it."""
    num_samples: int | None
    """None where it is not known."""


def one_line(error: BaseException) -> str:
    """Its message; those of some backends run over many lines."""
    return " ".join(str(error).split())


def named(error: Exception) -> str:
    """Its kind and message; of a file that is said to be missing also what was behind that."""
    sentence = f"{type(error).__name__}: {one_line(error)}"
    cause = error.__cause__
    if cause is None or not isinstance(error, FileNotFoundError):
        return sentence
    return f"{sentence}, because of {type(cause).__name__}: {one_line(cause)}"


def is_not_there(url: str, error: Exception) -> bool:
    """Whether an error says that there is no such file, so that asking again is of no use.

    Of a web server, fsspec says so whatever went wrong in asking for the size of a file; the cause tells.
    """
    cause = error.__cause__
    if not isinstance(error, FileNotFoundError) or cause is None or not _WEB.search(url):
        return isinstance(error, FileNotFoundError)
    import aiohttp  # there, since fsspec has asked by it

    return isinstance(cause, aiohttp.ClientResponseError) and cause.status in _GONE


def is_remote(url: str) -> bool:
    return _SCHEME.match(url) is not None


def open_shard(url: str) -> AbstractContextManager[BinaryIO]:
    """The open file; a remote one may be a stream that cannot seek."""
    if not is_remote(url):
        return Path(url).open("rb", buffering=BUFFER_BYTES)
    check_address(url, "a shard")
    import fsspec  # slow to import, and only for remote sets

    return cast(AbstractContextManager[BinaryIO], fsspec.open(url, "rb"))


def check_address(url: str, where: str) -> None:
    """ConfigError for an address of a kind that is not opened here; `where` names the setting."""
    *caches, store = url.split("::")
    if store.partition("://")[0] not in _STORES or not all(cache in _CACHES for cache in caches):
        raise ConfigError(
            f"{where} has {url!r}, but only addresses of {', '.join(_STORES)} are opened here, with {' or '.join(_CACHES)} before "
            "them: copy the files to one of those"
        )


def find_shards(patterns: Iterable[str], where: str) -> list[str]:
    """Shards in order: `{000..099}` and `{a,b}` written out, folders and globs looked up. `where` names the setting."""
    found: list[str] = []
    for pattern in patterns:
        if pattern.startswith("pipe:"):
            raise ConfigError(
                f"{where} has {pattern!r}, but commands are not run: no settings file runs code here; give paths or URLs, "
                "such as s3://bucket/{00000..00099}.tar"
            )
        meant = list(_written_out(pattern.removeprefix("file://")))
        if not meant:
            raise ConfigError(f"{where} has {pattern!r}, which counts down: write the lower number first")
        for url in meant:
            found += _looked_up(url, where)
    twice = next((url for url, count in Counter(found).items() if count > 1), None)
    if twice is not None:
        raise ConfigError(
            f"{where} names {twice} twice: name each shard once (a mixture repeats sets by weight)"
        )
    return found


def short_names(urls: list[str]) -> list[str]:
    """What tells the shards apart: their names without the folders that all share, so that a set may move."""
    # behind a question mark stands who may read it, and until when
    split = [(url.partition("?")[0] if is_remote(url) else url).split("/") for url in urls]
    folders = zip(*(parts[:-1] for parts in split), strict=False)
    shared = sum(1 for _ in takewhile(lambda level: len(set(level)) == 1, folders))
    return ["/".join(parts[shared:]) for parts in split]


def _written_out(pattern: str) -> Iterator[str]:
    found = _RANGE.search(pattern)
    if found is None:
        yield pattern
        return
    if found["words"] is not None:
        choices = found["words"].split(",")
    else:
        first, last = found["first"], found["last"]
        choices = [f"{number:0{len(first)}}" for number in range(int(first), int(last) + 1)]
    for choice in choices:
        yield from _written_out(pattern[: found.start()] + choice + pattern[found.end() :])


def _looked_up(url: str, where: str) -> list[str]:
    """The shards that a folder or glob stands for; a plain name stands for itself, whether it is there or not."""
    if is_remote(url):
        return _looked_up_remotely(url, where)
    if Path(url).is_dir():
        found = sorted(map(str, Path(url).glob("*.tar")))
    elif has_magic(url) and not Path(url).is_file():  # a name may hold brackets
        found = sorted(glob(url))
    else:
        found = [url]
    if not found:
        raise DataError(f"{where}: there is no .tar at {url}")
    missing = next((path for path in found if not Path(path).is_file()), None)
    if missing is not None:
        raise DataError(f"{where}: there is no file {missing}")
    return found


def _looked_up_remotely(url: str, where: str) -> list[str]:
    check_address(url, where)
    import fsspec

    try:
        files, path = fsspec.core.url_to_fs(url)
        # a question mark begins the query of a web address
        if not url.endswith("/") and not _GLOB.search(url):
            return [url]
        names = files.glob(f"{path.rstrip('/')}/*.tar" if url.endswith("/") else path)
        found = [str(files.unstrip_protocol(name)) for name in sorted(names)]
    except (ImportError, ValueError) as error:
        raise ConfigError(
            f"{where} has {url}, which fsspec cannot open here: {one_line(error)}; install the package it names, or copy the shards"
        ) from error
    except Exception as error:  # errors of fsspec's backends have no base class in common
        raise DataError(f"{where}: cannot reach {url} ({named(error)})") from error
    if not found:
        raise DataError(f"{where}: there is no .tar at {url}")
    for name in found:
        check_address(name, where)
    return found
