"""Kinds of training sets: `data.train.type` is the name of a module here.

Contract of a module: a frozen dataclass `Options`, and `build(options) -> PairSource`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class RawPair:
    """A pair as stored."""

    image_bytes: bytes
    """An encoded picture: JPEG, PNG, ..."""
    image_id: int
    text_id: int
    caption: str


class PairSource(Protocol):
    """Pairs by index; picklable, and safe to read from many worker processes."""

    num_images: int

    def __len__(self) -> int:
        """Number of pairs: a caption with k pictures is k pairs."""
        ...

    def read(self, index: int) -> RawPair:
        """One pair; raises DataError naming the store and the id."""
        ...
