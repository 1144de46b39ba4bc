"""Pairs of tar shards, local or remote, as img2dataset writes them: read in order, nothing unpacked, nothing imported first.

A sample is the members of a tar whose names are the same up to the first dot: a picture (`.jpg`, `.png`, ...), its caption
(`.txt`, or a field of `.json`), and others that are passed over.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import xxhash

from cn_clip.config.schema import number
from cn_clip.data.captions import MAX_ID
from cn_clip.data.pairs import BadPair, PairStream, RawPair
from cn_clip.data.tars.counts import counted, given_counts
from cn_clip.data.tars.lanes import TarLane, TarSet
from cn_clip.data.tars.samples import TarSample
from cn_clip.data.tars.shards import Shard, find_shards, is_remote, short_names
from cn_clip.errors import ConfigError, DataError

PICTURES = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff", "avif", "jp2", "ppm")


@dataclass(frozen=True, kw_only=True)
class Options:
    urls: tuple[str, ...]
    """Shards: paths, folders, globs or URLs, one or a list; `/data/{00000..00099}.tar` stands for a hundred."""
    caption: str = "txt"
    """Member that holds the caption, by its extension; `json.NAME` is the field NAME of the `.json`."""
    shuffle: int = number(1000, at_least=1)
    """Samples that a loader process holds and shuffles at a time; 1 leaves them in the order of the tars."""
    num_pairs: int | None = number(None, at_least=1)
    """Pairs of an epoch; null takes the number of samples, which local shards are counted for once."""
    counts: str | None = None
    """JSON with the number of samples of each shard, `{"00000.tar": 9876}`, where there are no `00000_stats.json` beside them."""


def build(options: Options) -> PairStream:
    if not options.urls:
        raise ConfigError(
            "urls of the webdataset is empty: give the tar shards, for example /data/{00000..00099}.tar"
        )
    urls = find_shards(options.urls, "urls of the webdataset")
    names = short_names(urls)
    counts = given_counts(urls, names, options.counts)
    unknown = [url for url in urls if url not in counts]
    if options.num_pairs is None:
        _refuse_remote(unknown)
        counts |= _counted(unknown)
        if sum(counts.values()) == 0:
            raise DataError(f"the {len(urls)} shards of the webdataset have no samples: {urls[0]}, ...")
    shards = tuple(Shard(url, name, counts.get(url)) for url, name in zip(urls, names, strict=True))
    reader = PairReader(options.caption)
    tars = TarSet(shards, reader, reader.extensions, options.shuffle)
    return TarPairs(tars, options.num_pairs or sum(counts.values()))


def _refuse_remote(urls: list[str]) -> None:
    remote = [url for url in urls if is_remote(url)]
    if remote:
        raise ConfigError(
            f"num_pairs of the webdataset is not set, and {len(remote)} remote shards have no sample counts ({remote[0]}, ...): set it "
            "to the number of pairs of an epoch, or give its counts"
        )


def _counted(urls: list[str]) -> dict[str, int]:
    try:
        return counted(urls)
    except DataError as error:
        raise DataError(
            f"{error}: mend it or take it out; or set num_pairs of the webdataset, and data.bad_pairs=skip"
        ) from error


class TarPairs(PairStream):
    """Samples of the shards."""

    def __init__(self, tars: TarSet, num_pairs: int) -> None:
        self._tars = tars
        self.num_pairs = self.num_images = num_pairs

    def lane(self, lane: int, num_lanes: int, *, first: int, seed: int) -> Iterator[RawPair | BadPair]:
        return TarLane(self._tars, lane, num_lanes, seed).pairs(first)


class PairReader:
    """A sample -> the pair it holds, or why it holds none."""

    def __init__(self, caption: str) -> None:
        is_field = caption.startswith("json.")
        self._caption, self._field = ("json", caption.removeprefix("json.")) if is_field else (caption, "")
        self.extensions = frozenset((*PICTURES, "json", self._caption))

    def __call__(self, shard: Shard, sample: TarSample) -> RawPair | BadPair:
        shown = sample.key.encode(
            "utf-8", "backslashreplace"
        ).decode()  # a name in another encoding can be logged too
        where = f"sample {shown} of {shard.url}"
        picture = next((sample.contents[name] for name in sample.contents if name in PICTURES), None)
        if picture is None:
            return BadPair(f"{where}: there is no picture ({', '.join(PICTURES[:4])}, ...)")
        try:
            facts = _json(sample.contents.get("json"))
            caption = self._read_caption(sample, facts)
        except ValueError as error:
            return BadPair(f"{where}: {error}")
        own = xxhash.xxh3_64_intdigest(f"{shard.name}\0{sample.key}".encode("utf-8", "surrogateescape")) >> 1
        return RawPair(
            picture,
            _id(facts, "image_id", own),
            _id(facts, "text_id", own),
            caption,
            pair_id=own,
            where=where,
        )

    def _read_caption(self, sample: TarSample, facts: dict[str, Any]) -> str:
        content = sample.contents.get(self._caption)
        if content is None:
            raise ValueError(f"there is no .{self._caption} with a caption; set caption of the webdataset")
        if self._field:
            caption = facts.get(self._field)
            if not isinstance(caption, str):
                raise ValueError(f"its .json has no text {self._field!r}; set caption of the webdataset")
        else:
            caption = content.decode()  # UnicodeDecodeError is a ValueError
        caption = caption.strip()
        caption.encode()  # JSON can hold halves of characters, which no tokenizer takes
        if not caption:
            raise ValueError("its caption is empty")
        return caption


def _json(content: bytes | None) -> dict[str, Any]:  # Any: whatever the JSON holds
    if content is None:
        return {}
    try:
        facts = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"its .json is broken ({error})") from error
    if not isinstance(facts, dict):
        raise ValueError("its .json is no object with named fields")
    return facts


def _id(facts: dict[str, Any], name: str, otherwise: int) -> int:  # Any: whatever the JSON holds
    value = facts.get(name)
    return value if type(value) is int and abs(value) <= MAX_ID else otherwise
