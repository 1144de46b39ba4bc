"""Which part of the shards a lane walks in each round through the set.

Letters: S shards, L lanes. In each round the shards stand in a new order; every lane gets S // L of them whole. The R = S mod L
that are left are cut evenly: laid side by side, lane l has the stretch from l·R/L to (l+1)·R/L of them, where a stretch of a
shard is a share of its sample numbers modulo L. So no lane gets more than another, and none reads more than two cut shards.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from cn_clip.data.permutations import shuffled
from cn_clip.parallel.rng import stable_seed


@dataclass(frozen=True, slots=True)
class Piece:
    """Those samples of a shard whose number modulo `period` is from `low` to `high` - 1."""

    shard: int
    period: int = 1
    low: int = 0
    high: int = 1

    def has(self, number: int) -> bool:
        return self.low <= number % self.period < self.high

    def size(self, num_samples: int) -> int:
        """Samples of the piece, when the shard has this many."""
        periods, rest = divmod(num_samples, self.period)
        return periods * (self.high - self.low) + min(max(rest - self.low, 0), self.high - self.low)

    def number(self, place: int) -> int:
        """Number in the shard of the sample at a place of the piece."""
        periods, rest = divmod(place, self.high - self.low)
        return periods * self.period + self.low + rest


def deal(num_shards: int, lane: int, num_lanes: int, *, round_number: int, seed: int) -> list[Piece]:
    """Pieces of a lane in this round, in order; the pieces of all lanes are the whole set."""
    order = shuffled(num_shards, stable_seed(seed, round_number))
    # the cuts move on with each round: a shard of few samples has none for some of the lanes
    lane = (lane + round_number) % num_lanes
    whole = num_shards - num_shards % num_lanes
    pieces = [Piece(shard) for shard in order[lane:whole:num_lanes]]
    return pieces + _cut(order[whole:], lane, num_lanes)


def _cut(shards: list[int], lane: int, num_lanes: int) -> list[Piece]:
    if not shards:
        return []
    divisor = math.gcd(len(shards), num_lanes)
    period, width = num_lanes // divisor, len(shards) // divisor
    start, stop = lane * width, (lane + 1) * width
    pieces = []
    for place in range(start // period, -(-stop // period)):
        low, high = max(start - place * period, 0), min(stop - place * period, period)
        pieces.append(Piece(shards[place], period, low, high))
    return pieces
