"""Order of the samples of a set of shards: lanes that are read side by side, each shuffled block by block.

What a lane gives at a place is a function of the set, the seed and the number of lanes, so a lane can be entered anywhere:
shards before the place are not opened when their number of samples is known, of samples before it only the headers are read.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import count, islice

from cn_clip.data.pairs import BadPair, RawPair
from cn_clip.data.permutations import shuffled
from cn_clip.data.tars.dealing import Piece, deal
from cn_clip.data.tars.samples import BrokenShardError, TarSample, count_samples, read_samples
from cn_clip.data.tars.shards import Shard
from cn_clip.parallel.rng import stable_seed

logger = logging.getLogger(__name__)

MAX_EMPTY_ROUNDS = 10
"""Times the number of lanes: the cuts of the shards move on each round, so by then there are no samples."""

ReadSample = Callable[[Shard, TarSample, int], RawPair | BadPair]
"""What a sample becomes in this round through the set."""


@dataclass(frozen=True)
class TarSet:
    """Shards, and what their samples become."""

    shards: tuple[Shard, ...]
    read_sample: ReadSample
    extensions: Collection[str]
    """Of the members that `read_sample` looks at."""
    shuffle: int
    """Samples of a block."""


class TarLane:
    """One lane: round after round through its share of the set."""

    def __init__(self, tars: TarSet, lane: int, num_lanes: int, seed: int) -> None:
        self._tars, self._lane, self._num_lanes, self._seed = tars, lane, num_lanes, seed
        self._counts = [shard.num_samples for shard in tars.shards]

    def pairs(self, first: int) -> Iterator[RawPair | BadPair]:
        """Endless, from the `first` on."""
        num_empty = 0
        for round_number in count():
            pieces = deal(
                len(self._counts), self._lane, self._num_lanes, round_number=round_number, seed=self._seed
            )
            size = self._size(pieces) if first else None
            if size is not None and size <= first:
                first, num_empty = first - size, 0 if size else num_empty + 1
            else:
                num_empty += 1
                for pair in self._round(pieces, round_number, first):
                    num_empty = 0
                    yield pair
                first = 0
            if num_empty > MAX_EMPTY_ROUNDS * self._num_lanes:
                first = 0
                yield BadPair(f"the shards have no samples: {self._tars.shards[0].url}, ...")

    def _round(self, pieces: list[Piece], round_number: int, first: int) -> Iterator[RawPair | BadPair]:
        """Samples of the pieces from the `first` on, shuffled block by block."""
        shuffle = self._tars.shuffle
        number, skip = divmod(first, shuffle)
        pairs = self._in_order(pieces, round_number, number * shuffle)
        block: list[RawPair | BadPair | None] = list(islice(pairs, shuffle))
        while block:
            seed = stable_seed(self._seed, round_number, self._lane, self._num_lanes, number)
            # the next block comes in as this one goes out, so that both together are as large as one
            following: list[RawPair | BadPair | None] = []
            for place, index in enumerate(shuffled(len(block), seed)):
                pair, block[index] = block[index], None
                if place >= skip and pair is not None:
                    yield pair
                following.extend(islice(pairs, 1))
            block, number, skip = following, number + 1, 0

    def _in_order(self, pieces: list[Piece], round_number: int, first: int) -> Iterator[RawPair | BadPair]:
        for index, piece in enumerate(pieces):
            size = self._size([piece]) if first else None
            if size is not None and size <= first:
                first -= size
                continue
            start, first = piece.number(first), 0
            try:
                yield from self._read(piece, round_number, start)
            except BrokenShardError as error:
                yield from self._in_place_of_lost(pieces[index:] + pieces[:index], round_number, start, error)

    def _read(self, piece: Piece, round_number: int, start: int = 0) -> Iterator[RawPair | BadPair]:
        """Pairs of a piece from number `start` of its shard on; BrokenShardError when it has fewer than its counts say too."""
        shard, num_read = self._tars.shards[piece.shard], 0
        samples = read_samples(
            shard.url, lambda number: number >= start and piece.has(number), self._tars.extensions
        )
        for sample in samples:
            if num_read == shard.num_samples:
                logger.warning(
                    "The shard %s has more samples than the %d of its counts.", shard.url, num_read
                )
                return
            if sample is not None:
                yield self._tars.read_sample(shard, sample, round_number)
            num_read += 1
        if shard.num_samples is not None and num_read < shard.num_samples:
            raise BrokenShardError(
                f"the shard {shard.url} has {num_read} samples, but its counts say {shard.num_samples}",
                num_read,
            )

    def _in_place_of_lost(
        self, pieces: list[Piece], round_number: int, start: int, error: BrokenShardError
    ) -> Iterator[BadPair]:
        """A bad pair for each sample from number `start` on that the first piece lost.

        As many as the counts say, so that every place behind stays where it is; one where they say nothing.
        """
        broken = pieces[0]
        expected = self._tars.shards[broken.shard].num_samples
        stand_ins = self._good(pieces[1:] + pieces[:1], round_number)
        for number in range(error.num_samples, error.num_samples + 1 if expected is None else expected):
            if broken.has(number):
                # drawn before `start` too: which one stands in does not depend on where the lane was entered
                instead = next(stand_ins, None)
                if number >= start:
                    yield BadPair(str(error), instead)

    def _good(self, pieces: list[Piece], round_number: int) -> Iterator[RawPair]:
        """What can be read of these pieces, over and over."""
        any_good = True
        while any_good:
            any_good = False
            for piece in pieces:
                with suppress(BrokenShardError):
                    for pair in self._read(piece, round_number):
                        if isinstance(pair, RawPair):
                            any_good = True
                            yield pair

    def _size(self, pieces: list[Piece]) -> int:
        return sum(piece.size(self._num_samples(piece.shard)) for piece in pieces)

    def _num_samples(self, index: int) -> int:
        """Of a shard; one whose count is not known is counted, a break taken for one sample, as it is read."""
        known = self._counts[index]
        if known is None:
            try:
                known = count_samples(self._tars.shards[index].url)
            except BrokenShardError as error:
                known = error.num_samples + 1
            self._counts[index] = known
        return known
