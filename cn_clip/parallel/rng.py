"""Randomness as a function of where in the run it is used, so that no state has to be saved or kept in step.

A micro-batch of the global batch has its own seed from (seed, step, its number in the global batch): encoded twice, on
another rank or after a resume it meets the same dropout and FLIP masks.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


def stable_seed(*parts: int) -> int:
    """63-bit seed, a well-mixed function of the numbers alone (the same on every machine and Python)."""
    digest = hashlib.blake2b(struct.pack(f"<{len(parts)}q", *parts), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Torch's generators of the CPU and `device` start from `seed` inside, and go on as before outside."""
    # Not torch.manual_seed: it queues a call, with its stack, for each kind of device that is not there, for ever.
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.default_generator.manual_seed(seed)
        if device.type == "cuda":
            torch.cuda.manual_seed(seed)
        yield


# multipliers of splitmix64 (Steele, Lea, Flood 2014) as signed 64-bit numbers
_GOLDEN, _FIRST, _SECOND = (
    value - 2**64 for value in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
)


def pair_keys(seed: int, positions_B: Tensor) -> Tensor:
    """(B,) int64: a well-mixed function of the seed and of each pair's place in the global batch."""
    keys_B = positions_B * _GOLDEN + seed
    # int64 shifts are arithmetic: the masks cut off the copies of the sign
    keys_B = (keys_B ^ ((keys_B >> 30) & ((1 << 34) - 1))) * _FIRST
    keys_B = (keys_B ^ ((keys_B >> 27) & ((1 << 37) - 1))) * _SECOND
    return keys_B ^ ((keys_B >> 31) & ((1 << 33) - 1))
