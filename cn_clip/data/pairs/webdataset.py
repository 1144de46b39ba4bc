"""Pairs of tar shards, local or remote, as img2dataset writes them: read in order, nothing unpacked, nothing imported first.

A sample is the members of a tar whose names are the same up to the first dot: a picture (`.jpg`, `.png`, ...), its caption
(`.txt`, or a field of `.json`), and others that are passed over. A list of texts `hard_negatives` in the `.json` are captions
that look right for the picture and are wrong.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import xxhash

from cn_clip.config.schema import number
from cn_clip.data.captions import MAX_ID
from cn_clip.data.pairs import BadPair, PairStream, RawPair
from cn_clip.data.tars.counts import counted, given_counts
from cn_clip.data.tars.lanes import TarLane, TarSet
from cn_clip.data.tars.members import PICTURES, Contents, caption_member, captions_of, fields_of, picture_of
from cn_clip.data.tars.samples import TarSample
from cn_clip.data.tars.shards import Shard, find_shards, is_remote, short_names
from cn_clip.errors import ConfigError, DataError


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
            "urls of data.train is empty: give the tar shards, for example /data/{00000..00099}.tar"
        )
    urls = find_shards(options.urls, "urls of data.train")
    names = short_names(urls)
    counts = given_counts(urls, names, options.counts, is_needed=options.num_pairs is None)
    unknown = [url for url in urls if url not in counts]
    if options.num_pairs is None:
        _refuse_remote(unknown)
        counts |= _counted(unknown)
        if sum(counts.values()) == 0:
            raise DataError(f"the {len(urls)} shards of data.train have no samples: {urls[0]}, ...")
    shards = tuple(Shard(url, name, counts.get(url)) for url, name in zip(urls, names, strict=True))
    reader = PairReader(options.caption)
    tars = TarSet(shards, reader, reader.extensions, options.shuffle)
    return TarPairs(tars, options.num_pairs or sum(counts.values()))


def _refuse_remote(urls: list[str]) -> None:
    remote = [url for url in urls if is_remote(url)]
    if remote:
        raise ConfigError(
            f"num_pairs of data.train is not set, and {len(remote)} remote shards have no sample counts ({remote[0]}, ...): set it "
            "to the number of pairs of an epoch, or give its counts"
        )


def _counted(urls: list[str]) -> dict[str, int]:
    try:
        return counted(urls)
    except DataError as error:
        raise DataError(
            f"{error}: mend it or take it out; or set num_pairs of data.train, and data.bad_pairs=skip"
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
        self._caption = caption
        self.extensions = frozenset((*PICTURES, "json", caption_member(caption)))

    def __call__(self, shard: Shard, sample: TarSample, round_number: int) -> RawPair | BadPair:
        shown = sample.key.encode(
            "utf-8", "backslashreplace"
        ).decode()  # a name in another encoding can be logged too
        where = f"sample {shown} of {shard.url}"
        try:
            picture, captions = picture_of(sample.contents), captions_of(sample.contents, self._caption)
        except ValueError as error:
            return BadPair(f"{where}: {error}")
        facts, own = _facts(sample.contents), _digest(shard.name, sample.key)
        image_id, negatives = _id(facts, "image_id", own), _hard_negatives(facts)
        if negatives is None:
            return BadPair(f"{where}: hard_negatives of its .json is not a list of texts")
        if len(captions) == 1:
            text_id = _id(facts, "text_id", own)
            return RawPair(
                picture, image_id, text_id, captions[0], own, hard_negatives=negatives, where=where
            )
        # in turn, so that as many rounds have each of them once
        place = (own + round_number) % len(captions)
        of_caption = _digest(shard.name, sample.key, str(place))
        return RawPair(
            picture, image_id, of_caption, captions[place], of_caption, hard_negatives=negatives, where=where
        )


def _facts(contents: Contents) -> dict[str, Any]:  # Any: whatever the JSON holds
    try:
        return fields_of(contents)
    except ValueError:
        return {}  # the caption is good without it, and the names give ids as well


def _hard_negatives(facts: dict[str, Any]) -> tuple[str, ...] | None:  # Any: as above
    """None where they are something else than texts."""
    texts = facts.get("hard_negatives", [])
    return tuple(texts) if type(texts) is list and all(type(text) is str for text in texts) else None


def _digest(*names: str) -> int:
    return xxhash.xxh3_64_intdigest("\0".join(names).encode("utf-8", "surrogateescape")) >> 1


def _id(facts: dict[str, Any], name: str, otherwise: int) -> int:  # Any: whatever the JSON holds
    value = facts.get(name)
    return value if type(value) is int and abs(value) <= MAX_ID else otherwise
