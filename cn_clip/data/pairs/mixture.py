"""Several training sets as one, each with its share of the pairs.

A set that is larger than its share is walked through over several epochs, a smaller one comes more than once, in a new order
each time. With a stream among them, the whole is a stream.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import count

import numpy as np

from cn_clip.config.schema import Part, WeightedPart, number, parts
from cn_clip.data.mixing import OwnIds, Shares, Turns, portions, shares
from cn_clip.data.pairs import BadPair, PairColumns, PairSource, PairStream, RawPair
from cn_clip.data.permutations import Permutation
from cn_clip.errors import ConfigError, DataError
from cn_clip.parallel.rng import stable_seed


@dataclass(frozen=True, kw_only=True)
class Options:
    sources: tuple[WeightedPart, ...] = parts("pairs")
    """Training sets of any type; `weight` beside the `type` is a set's share against the others, by size without one."""
    pairs_per_epoch: int | None = number(None, at_least=1)
    """Pairs of an epoch; null takes the pairs of all sets together."""


def build(options: Options) -> PairSource | PairStream:
    if not options.sources:
        raise ConfigError("sources of the mixture is empty: give the sets to mix")
    weights = [source.weight for source in options.sources]
    if None in weights and any(weights):
        raise ConfigError(
            "some sources of the mixture have a weight and some have none: give it to all, or to none"
        )
    members = [_opened(source) for source in options.sources]
    sizes = [_num_pairs(member) for member in members]
    empty = next((source for source, size in zip(options.sources, sizes, strict=True) if not size), None)
    if empty is not None:
        raise DataError(f"a source of the mixture has no pairs: {empty.options}")
    num_pairs = options.pairs_per_epoch or sum(sizes)
    weighted = shares(
        [size if weight is None else weight for size, weight in zip(sizes, weights, strict=True)]
    )
    sources = [member for member in members if isinstance(member, PairSource)]
    if len(sources) < len(members):
        return MixedStream(members, weighted, num_pairs)
    entries = portions(num_pairs, weighted)
    if 0 in entries:
        raise ConfigError(
            f"a source of the mixture has no pair among the {num_pairs} of an epoch ({options.sources[entries.index(0)].options}): "
            "raise its weight or pairs_per_epoch"
        )
    return MixedSource(sources, entries)


def _opened(source: Part) -> PairSource | PairStream:
    # the settings have found the module by its name before
    opened: PairSource | PairStream = importlib.import_module(f"cn_clip.data.pairs.{source.type}").build(
        source.options
    )
    return opened


def _num_pairs(member: PairSource | PairStream) -> int:
    return member.num_pairs if isinstance(member, PairStream) else len(member)


@lru_cache(maxsize=64)  # a source is in one or two rounds at a time
def _order(length: int, seed: int, member: int, round_number: int) -> Permutation:
    return Permutation(length, stable_seed(seed, member, round_number))


class MixedSource(PairSource):
    """Sources side by side: entries of the first, then of the second, ...

    The entries of a source over all epochs walk it round after round, each in an order of its own; to the source, a round is
    an epoch.
    """

    def __init__(self, sources: Sequence[PairSource], sizes: Sequence[int]) -> None:
        """`sizes`: entries of each source in an epoch."""
        self._sources, self._sizes = sources, sizes
        self._starts = np.concatenate([[0], np.cumsum(sizes)])
        self._own_ids = [OwnIds(member, len(sources)) for member in range(len(sources))]
        self.num_images = sum(source.num_images for source in sources)

    def __len__(self) -> int:
        return int(self._starts[-1])

    def read(self, index: int, *, epoch: int, seed: int, picture: bool = True) -> RawPair:
        member = int(np.searchsorted(self._starts, index, side="right")) - 1
        source = self._sources[member]
        entry = epoch * self._sizes[member] + index - int(self._starts[member])
        round_number, place = divmod(entry, len(source))
        pair = _order(len(source), seed, member, round_number)[place]
        raw = source.read(pair, epoch=round_number, seed=seed, picture=picture)
        return _renumbered(raw, self._own_ids[member])

    def columns(self, *, epoch: int, seed: int) -> PairColumns:
        return _joined([self._columns(member, epoch, seed) for member in range(len(self._sources))])

    def _columns(self, member: int, epoch: int, seed: int) -> PairColumns:
        source, size, own_ids = self._sources[member], self._sizes[member], self._own_ids[member]
        found, entry = [], epoch * size
        while entry < (epoch + 1) * size:
            round_number, place = divmod(entry, len(source))
            stop = min(len(source), place + (epoch + 1) * size - entry)
            pairs = _order(len(source), seed, member, round_number).at(np.arange(place, stop))
            columns = source.columns(epoch=round_number, seed=seed)
            image_ids, text_ids = own_ids(columns.image_ids[pairs]), own_ids(columns.text_ids[pairs])
            found.append(PairColumns(image_ids, text_ids, columns.caption_keys[pairs]))
            entry += stop - place
        return _joined(found)


class MixedStream(PairStream):
    """Streams and sources: each lane takes turns between its lanes of all of them."""

    def __init__(self, members: Sequence[PairSource | PairStream], weighted: Shares, num_pairs: int) -> None:
        self._members, self._shares, self.num_pairs = members, weighted, num_pairs
        self.num_images = sum(member.num_images for member in members)

    def lane(self, lane: int, num_lanes: int, *, first: int, seed: int) -> Iterator[RawPair | BadPair]:
        turns = Turns.of(self._shares, seed, lane)
        walks = [
            _lane_of(member, lane, num_lanes, done, stable_seed(seed, k))
            for k, (member, done) in enumerate(zip(self._members, turns.before(first), strict=True))
        ]
        own_ids = [OwnIds(k, len(walks)) for k in range(len(walks))]
        for item in count(first):
            k = turns.at(item)
            pair = next(walks[k])
            if isinstance(pair, RawPair):
                yield _renumbered(pair, own_ids[k])
            else:
                instead = None if pair.instead is None else _renumbered(pair.instead, own_ids[k])
                yield replace(pair, instead=instead)


def _lane_of(
    member: PairSource | PairStream, lane: int, num_lanes: int, first: int, seed: int
) -> Iterator[RawPair | BadPair]:
    """One lane of a member; of a source, every `num_lanes`-th pair of its rounds."""
    if isinstance(member, PairStream):
        yield from member.lane(lane, num_lanes, first=first, seed=seed)
        return
    for item in count(first):
        round_number, place = divmod(item * num_lanes + lane, len(member))
        pair = _order(len(member), seed, 0, round_number)[place]
        try:
            yield member.read(pair, epoch=round_number, seed=seed)
        except DataError as error:
            yield BadPair(str(error))


def _renumbered(pair: RawPair, own_ids: OwnIds) -> RawPair:
    image_id, text_id, pair_id = own_ids.of(pair.image_id, pair.text_id, pair.pair_id)
    where = (
        pair.where
        or f"picture {pair.image_id} of pair {pair.pair_id} (text id {pair.text_id}) of source {own_ids.number}"
    )
    return replace(pair, image_id=image_id, text_id=text_id, pair_id=pair_id, where=where)


def _joined(columns: Sequence[PairColumns]) -> PairColumns:
    return PairColumns(
        np.concatenate([each.image_ids for each in columns]),
        np.concatenate([each.text_ids for each in columns]),
        np.concatenate([each.caption_keys for each in columns]),
    )
