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
