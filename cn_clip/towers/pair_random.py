"""Random numbers that are a pure function of (pair, site, element): no generator, no state, no order of calls.

A counter-based generator (the idea of Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011): each element
of a tensor has a number of its own, which is hashed under the key of its pair. So a pair meets the same dropout and the
same masked patches however the batch is cut, padded, sorted or repeated, on every device.

All arithmetic is on whole numbers that wrap. Shapes: B pairs, S sites, `dims` the rest of what is drawn for a pair.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor

# step and multipliers of splitmix64 (Steele, Lea, Flood 2014), as signed numbers
_GOLDEN = 0x9E3779B97F4A7C15 - 2**64
_FIRST_64, _SECOND_64 = 0xBF58476D1CE4E5B9 - 2**64, 0x94D049BB133111EB - 2**64
# of a 32-bit hash of little bias (Chris Wellons, hash-prospector, "lowbias32"), as signed numbers
_FIRST_32, _SECOND_32 = 0x7FEB352D, 0x846CA68B - 2**32
# odd numbers without small common relations (the golden ratio's, then multipliers of MurmurHash3 and xxHash), signed
_STRIDES = tuple(
    stride - 2**32 if stride >= 2**31 else stride
    for stride in (0x9E3779B9, 0x85EBCA6B, 0xC2B2AE35, 0x27D4EB2F, 0x165667B1, 0x9E3779B1)
)

_STEPS = 1 << 16
"""Probabilities are whole multiples of 1 / this: one hash of 32 bits then decides two elements."""


def number_of(name: str) -> int:
    """Signed 64-bit number of a site's name, the same on every machine."""
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little", signed=True)


def mixed(keys: Tensor) -> Tensor:
    """int64 keys of the same shape in which every bit depends on all bits of the given ones; one to one."""
    keys = (keys ^ _shifted(keys, 30)) * _FIRST_64
    keys = (keys ^ _shifted(keys, 27)) * _SECOND_64
    return keys ^ _shifted(keys, 31)


def pair_keys(seed: int, positions_B: Tensor) -> Tensor:
    """(B,) int64: a well-mixed function of the seed and of each pair's place in the global batch."""
    return mixed(positions_B * _GOLDEN + seed)


def site_keys(keys_B: Tensor, numbers_S: Tensor) -> Tensor:
    """(S, B) keys of each pair at each site."""
    return mixed(keys_B ^ numbers_S[:, None])


def part_keys(keys_B: Tensor, num_parts: int) -> Tensor:
    """(B * num_parts,) keys of things that belong to the pairs, such as hard negatives; those of pair 0 first."""
    parts_P = torch.arange(1, num_parts + 1, device=keys_B.device)
    return mixed(mixed(keys_B)[:, None] + parts_P).flatten()


def random_words(keys_B: Tensor, dims: Sequence[int]) -> Tensor:
    """(B, *dims) int32, each bit fair and independent of all others; the keys are `mixed` ones."""
    low_B, high_B = keys_B.to(torch.int32), (keys_B >> 32).to(torch.int32)
    shape = (-1, *(1 for _ in dims))
    words = low_B.view(shape) + _counters(dims, keys_B.device)
    words ^= _shifted(words, 16)
    words *= _FIRST_32
    # the key's other half here, so that two pairs whose counters overlap part again
    words += high_B.view(shape)
    words ^= _shifted(words, 15)
    words *= _SECOND_32
    words ^= _shifted(words, 16)
    return words


def kept(keys_B: Tensor, dims: Sequence[int], drop: float) -> Tensor:
    """(B, *dims) true for elements that stay, each with probability `1 - quantised(drop)`, which is above 0."""
    *outer, last = dims
    halves = random_words(keys_B, (*outer, (last + 1) // 2)).view(torch.int16)[..., :last]
    return halves >= round(drop * _STEPS) - _STEPS // 2


def quantised(drop: float) -> float:
    """The probability `kept` really drops with: at most 1 / 131072 off, and off by nothing on average once divided out."""
    return round(drop * _STEPS) / _STEPS


def _shifted(numbers: Tensor, bits: int) -> Tensor:
    """Logical shift to the right: torch's own copies the sign bit in, which would skew what is kept."""
    width = torch.iinfo(numbers.dtype).bits
    return (numbers >> bits) & ((1 << (width - bits)) - 1)


def _counters(dims: Sequence[int], device: torch.device) -> Tensor:
    """(*dims) int32, a number for each element, whatever the other dimensions' lengths.

    Strides modulo 2^32 span a lattice without short vectors: no two elements of a draw as large as a model's share a number.
    """
    counters = torch.zeros((), dtype=torch.int32, device=device)
    for place, (size, stride) in enumerate(zip(reversed(dims), _STRIDES, strict=False)):
        own = torch.arange(size, dtype=torch.int32, device=device) * stride
        counters = counters + own.view(-1, *(1 for _ in range(place)))
    return counters
