"""Fingerprint of how a picture looks, and the pairs of fingerprints that differ in few bits.

The fingerprint is the DCT hash of C. Zauner, "Implementation and Benchmarking of Perceptual Image Hash Functions"
(2010, phash.org): the 8 x 8 lowest frequencies of the grey picture at 32 x 32, each 1 where it is above their median.
It outlives other sizes, formats and JPEG qualities; a crop, a mirror image or a turn changes it.

Shapes: n pictures, S side of the small grey picture, K frequencies kept per axis.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import chain, combinations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

_SIDE = 32
_KEPT = 8
_PLAIN = 2.0  # grey levels of deviation; below it the frequencies are noise of the encoder
_BITS = 64
MAX_DISTANCE = 10
"""Of 64 bits; different photos differ in 32 on average, and in a large set some differ in fewer than 12."""
_MAX_BUCKET = 4_000
_PART = 1 << 18


def _cosines() -> NDArray[np.float32]:
    """(K, S) rows of the DCT-II."""
    frequencies, places = np.arange(_KEPT)[:, None], np.arange(_SIDE)[None]
    return np.cos(np.pi * frequencies * (2 * places + 1) / (2 * _SIDE)).astype(np.float32)


_COSINES_KS = _cosines()
_ONES = (
    np.unpackbits(np.arange(1 << 16, dtype=np.uint16).view(np.uint8).reshape(-1, 2), axis=1)
    .sum(1)
    .astype(np.uint8)
)


def near_hash(grey: Image.Image) -> int | None:
    """64 bits of a picture in mode L, or None when it has next to no contrast and so looks like any other such picture."""
    small_SS = np.asarray(grey.resize((_SIDE, _SIDE), Image.Resampling.HAMMING), np.float32)
    if small_SS.std() < _PLAIN:
        return None
    frequencies_KK = _COSINES_KS @ small_SS @ _COSINES_KS.T
    frequencies_KK[0, 0] = 0  # the mean brightness, which editing changes
    bits = frequencies_KK > np.median(frequencies_KK)
    return int.from_bytes(np.packbits(bits).tobytes(), "little")


def near_pairs(hashes: NDArray[np.uint64], distance: int) -> Iterator[NDArray[np.int64]]:
    """(pairs, 2) places of *different* hashes that differ in at most `distance` bits, each pair at least once.

    In parts of some hundred thousand: thousands of copies of one placeholder are near each other, every two of them.
    Among d + k bands of bits, k are equal in both (pigeonhole), so only hashes that share k bands meet: in sorted
    buckets, never all with all. In a bucket of more than 4,000 hashes each meets the 4,000 after it.
    """
    found: list[NDArray[np.int64]] = []
    num_found = 0
    masks = _masks(len(hashes), distance) if distance > 0 else ()
    for pairs in chain.from_iterable(_meet(hashes, mask, distance) for mask in masks):
        found.append(pairs)
        num_found += len(pairs)
        if num_found >= _PART:
            yield np.concatenate(found)
            found, num_found = [], 0
    if found:
        yield np.concatenate(found)


def _count_ones(numbers: NDArray[np.uint64]) -> NDArray[np.uint8]:
    # numpy has this since 2.0 only
    quarters = _ONES[numbers.view(np.uint16).reshape(-1, 4)]
    return quarters.sum(axis=1, dtype=np.uint8)


def _masks(num: int, distance: int) -> Iterator[np.uint64]:
    # as few bands as make buckets of about two
    together = next(
        k for k in range(1, 64) if _BITS * k / (distance + k) >= min(math.log2(max(num, 2)), 32) - 1
    )
    edges = np.linspace(0, _BITS, distance + together + 1).astype(int).tolist()
    bands = [(1 << stop) - (1 << start) for start, stop in zip(edges[:-1], edges[1:], strict=True)]
    for chosen in combinations(bands, together):
        yield np.uint64(sum(chosen))


def _meet(hashes: NDArray[np.uint64], mask: np.uint64, distance: int) -> Iterator[NDArray[np.int64]]:
    keys = hashes & mask
    order = np.argsort(keys)
    keys, ordered = keys[order], hashes[order]
    first = np.arange(len(keys))
    for step in range(1, _MAX_BUCKET + 1):
        first = first[first + step < len(keys)]
        first = first[keys[first] == keys[first + step]]
        if not len(first):
            return
        near = _count_ones(ordered[first] ^ ordered[first + step]) <= distance
        close = first[near]
        yield np.stack([order[close], order[close + step]], axis=1)
