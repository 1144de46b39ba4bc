"""Samples of a shard: the members whose names are the same up to the first dot, as webdataset groups them."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import BinaryIO

from cn_clip.data.tars.shards import is_not_there, is_remote, named, open_shard
from cn_clip.data.tars.walk import MAX_BODY_BYTES, BrokenTarError, TarWalk
from cn_clip.errors import DataError

logger = logging.getLogger(__name__)

PAUSES_SECONDS = (1.0, 5.0, 20.0)
"""Before each new try at a remote shard; after the last of them it is given up."""
_NAME = re.compile(r"(?P<key>(?:.*/)?[^/.][^/.]*)\.(?P<extension>[^/]+)", re.DOTALL)

Wanted = Callable[[int], bool]
"""Whether the contents of the sample of this number are wanted."""


class BrokenShardError(DataError):
    """A shard that cannot be read to its end."""

    def __init__(self, reason: str, num_samples: int) -> None:
        super().__init__(reason)
        self.num_samples = num_samples
        """Whole samples before it broke."""


@dataclass(frozen=True, slots=True)
class TarSample:
    key: str
    """What the names of its members share."""
    contents: dict[str, bytes]
    """Extension in lower case -> content, in the order of the tar."""


def read_samples(url: str, wanted: Wanted, extensions: Collection[str]) -> Iterator[TarSample | None]:
    """Every sample of a shard in order, None for one that is not wanted (only its headers are read).

    A remote shard that breaks off is opened again some times, and read on from the sample it broke in. BrokenShardError names
    one that stays broken.
    """
    reader = _SampleReader(wanted, extensions)
    pauses = iter(PAUSES_SECONDS if is_remote(url) else ())
    cause: Exception
    while True:
        try:
            with open_shard(url) as file:
                yield from reader.read_on(file)
            return
        except BrokenTarError as error:
            reason, cause = str(error), error
        except Exception as error:  # errors of fsspec's backends have no base class in common
            if not is_remote(url) and not isinstance(error, OSError):
                raise
            reason, cause = f"cannot be read ({named(error)})", error
        seconds = None if is_not_there(url, cause) else next(pauses, None)
        if seconds is None:
            after = f", after {reader.num_samples} whole samples" if reader.num_samples else ""
            raise BrokenShardError(f"the shard {url} {reason}{after}", reader.num_samples) from cause
        logger.warning("The shard %s %s; it is opened again in %g s.", url, reason, seconds)
        time.sleep(seconds)


def count_samples(url: str) -> int:
    """Number of samples of a shard, from its headers."""
    return sum(1 for _ in read_samples(url, lambda number: False, ()))


class _SampleReader:
    """Remembers which sample is not finished yet, so that reading can go on there."""

    def __init__(self, wanted: Wanted, extensions: Collection[str]) -> None:
        self._wanted, self._extensions = wanted, extensions
        self.num_samples = 0
        """Whole samples so far."""
        self._start = 0

    def read_on(self, file: BinaryIO) -> Iterator[TarSample | None]:
        walk, key = TarWalk(file, self._start), None
        contents: dict[str, bytes] = {}
        while (member := walk.next()) is not None:
            name = _NAME.fullmatch(member.name) if member.is_file else None
            if name is None:
                continue
            if name["key"] != key:
                if key is not None:
                    yield self._finish(key, contents, walk.member_start)
                key, contents = name["key"], {}
            extension = name["extension"].lower()
            if self._wanted(self.num_samples) and extension in self._extensions:
                if member.size > MAX_BODY_BYTES:  # not a break, since whoever passes over it sees none
                    logger.warning(
                        "%s has %d bytes, too many for a picture: it is passed over.",
                        member.name,
                        member.size,
                    )
                else:
                    contents.setdefault(extension, walk.body())
        if key is not None:
            yield self._finish(key, contents, walk.member_start)

    def _finish(self, key: str, contents: dict[str, bytes], next_start: int) -> TarSample | None:
        sample = TarSample(key, contents) if self._wanted(self.num_samples) else None
        self.num_samples, self._start = self.num_samples + 1, next_start
        return sample
