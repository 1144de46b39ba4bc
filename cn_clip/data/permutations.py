"""Orders that are a function of a seed alone, the same on every machine and with every version of numpy or torch.

They are made of whole-number arithmetic modulo 2^64; only the mixing constants have a source.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from cn_clip.parallel.rng import stable_seed

Numbers = NDArray[np.uint64]
NUM_ROUNDS = 6
"""With fewer, small permutations are visibly uneven."""


def mixed(numbers: Numbers) -> Numbers:
    """Well-spread numbers, one for each (the finalizer of SplitMix64, Steele, Lea and Flood 2014)."""
    numbers = (numbers ^ (numbers >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    numbers = (numbers ^ (numbers >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return numbers ^ (numbers >> np.uint64(31))


def shuffled(length: int, seed: int) -> list[int]:
    """0 to length - 1 in an order drawn by the seed."""
    keys = mixed(np.arange(length, dtype=np.uint64) + np.uint64(stable_seed(seed, length)))
    order: list[int] = np.argsort(keys, kind="stable").tolist()
    return order


class Permutation:
    """0 to length - 1 in an order drawn by the seed, of which any part can be had without the rest.

    The numbers below the next power of two are scrambled one-to-one, by adding, multiplying by an odd number and folding the
    high half over the low one; one that falls beyond the length is scrambled on until it does not.
    """

    def __init__(self, length: int, seed: int) -> None:
        self._length, bits = length, max(1, (length - 1).bit_length())
        self._mask, self._half = 2**bits - 1, (bits + 1) // 2
        keys = [stable_seed(seed, length, number) for number in range(NUM_ROUNDS)]
        self._keys = [(key, stable_seed(key) | 1) for key in keys]

    def __getitem__(self, place: int) -> int:
        found = self._scrambled(place)
        while found >= self._length:
            found = self._scrambled(found)
        return found

    def at(self, places: NDArray[np.int64]) -> NDArray[np.int64]:
        """What stands at these places, each from 0 to length - 1."""
        found = self._all_scrambled(places.astype(np.uint64))
        outside = np.flatnonzero(found >= self._length)
        while len(outside):
            found[outside] = self._all_scrambled(found[outside])
            outside = outside[found[outside] >= self._length]
        return found.astype(np.int64)

    def _scrambled(self, value: int) -> int:
        for addend, factor in self._keys:
            value = ((value + addend) * factor) & self._mask
            value ^= value >> self._half
        return value

    def _all_scrambled(self, values: Numbers) -> Numbers:
        for addend, factor in self._keys:
            values = ((values + np.uint64(addend)) * np.uint64(factor)) & np.uint64(self._mask)
            values ^= values >> np.uint64(self._half)
        return values
