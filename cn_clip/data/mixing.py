"""Arithmetic of sets that are mixed: how many pairs each gives, whose turn it is, and ids that do not collide."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from cn_clip.parallel.rng import stable_seed

Shares = tuple[Fraction, ...]
"""Parts of a whole: their sum is 1."""


def shares(weights: Sequence[float]) -> Shares:
    """Each weight's part of the whole, exactly."""
    exact = [Fraction(weight) for weight in weights]
    return tuple(weight / sum(exact) for weight in exact)


def portions(total: int, parts: Shares) -> list[int]:
    """`total` cut by these shares into whole numbers, those with the largest remainders rounded up."""
    sizes = [math.floor(total * share) for share in parts]
    by_remainder = sorted(range(len(parts)), key=lambda k: (sizes[k] - total * parts[k], k))
    for k in by_remainder[: total - sum(sizes)]:
        sizes[k] += 1
    return sizes


@dataclass(frozen=True)
class Turns:
    """Whose turn it is at each item of a lane: in every stretch each member comes as often as its share says, within a few.

    The first member takes every item where `n * share` passes a whole number; of the items left the second takes its own
    share likewise, and so on. So how often each has come before item n is a formula of n.
    """

    shares: Shares
    phases: tuple[Fraction, ...]
    """Where each member's count begins, 0 to 1, so that lanes do not keep step."""

    @classmethod
    def of(cls, parts: Shares, *seed: int) -> Turns:
        phases = (Fraction(stable_seed(*seed, k) % 2**32, 2**32) for k in range(len(parts)))
        return cls(parts, tuple(phases))

    def before(self, item: int) -> list[int]:
        """How often each member has come before this item."""
        counts, left, rest = [], item, Fraction(1)
        for share, phase in zip(self.shares[:-1], self.phases, strict=False):
            counts.append(math.floor(left * share / rest + phase))  # phases are below 1, so it is 0 at item 0
            left, rest = left - counts[-1], rest - share
        return [*counts, left]

    def at(self, item: int) -> int:
        """The member whose turn it is."""
        before, after = self.before(item), self.before(item + 1)
        return next(k for k, (count, then) in enumerate(zip(before, after, strict=True)) if then > count)


@dataclass(frozen=True)
class OwnIds:
    """Ids of one of several sets -> ids that those of the others do not equal; of a single set they stay as they are.

    One-to-one on 64 bits, since the factor is odd; up to 2^63 / factor ids of different sets never meet. Beyond, as with ids
    that are hashes, they meet no more often than hashes do.
    """

    number: int
    """Of the set."""
    num_sets: int

    def __call__(self, ids: NDArray[np.int64]) -> NDArray[np.int64]:
        factor = self.num_sets | 1
        # the arithmetic of arrays wraps round at 64 bits
        return ids * np.int64(factor) + np.int64(self.number)

    def of(self, *ids: int) -> list[int]:
        renumbered: list[int] = self(np.array(ids, np.int64)).tolist()
        return renumbered
