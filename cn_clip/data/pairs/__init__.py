"""Kinds of training sets: `data.train.type` is the name of a module here.

Contract of a module: a frozen dataclass `Options`, and `build(options) -> PairSource | PairStream`. A source is read at any
index, so that a run may stand anywhere in it; a stream comes in the order of its files.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cn_clip.data.store import PairColumns


@dataclass(frozen=True, slots=True)
class RawPair:
    """A pair as stored."""

    image_bytes: bytes
    """An encoded picture: JPEG, PNG, ..."""
    image_id: int
    text_id: int
    caption: str
    pair_id: int
    """Equal for two reads of the same pair, and only for them."""
    token_ids: NDArray[np.uint16] | None = None
    """Of the caption, without [CLS] and [SEP], as its store has cached them."""
    tokenizer: str | None = None
    """Fingerprint of the tokenizer that gave `token_ids`."""
    hard_negatives: tuple[str, ...] = ()
    """Captions that are wrong for the picture, though they look right."""
    where: str = ""
    """What finds it again, for messages; empty where its ids do."""


@dataclass(frozen=True, slots=True)
class BadPair:
    """A pair that cannot be read, and why; passed on, since an exception in a worker would reach the user as a traceback."""

    reason: str
    instead: RawPair | None = None
    """Takes its place where such pairs are passed over; None takes another one of the loader's choice."""


class PairSource(ABC):
    """Pairs by index; picklable, and safe to read from many worker processes."""

    num_images: int
    content: str = ""
    """Digest of its pictures, where one is kept: other pictures under the same ids have another."""

    @abstractmethod
    def __len__(self) -> int:
        """Number of pairs of an epoch."""

    @abstractmethod
    def read(self, index: int, *, epoch: int, seed: int, picture: bool = True) -> RawPair:
        """One pair; DataError names the store and the id. `epoch` and `seed` matter where a source draws or takes turns.

        `picture`: false leaves its bytes out, for a run that has the picture's features.
        """

    @abstractmethod
    def columns(self, *, epoch: int, seed: int) -> PairColumns:
        """Ids of every pair that `read` gives in this epoch."""


class PairStream(ABC):
    """Pairs in the order of their files, dealt to lanes that are read side by side; picklable."""

    num_images: int
    num_pairs: int
    """Of an epoch."""

    @abstractmethod
    def lane(self, lane: int, num_lanes: int, *, first: int, seed: int) -> Iterator[RawPair | BadPair]:
        """Endless pairs of one lane, from its `first` on (counted over the whole run); a pair that cannot be read counts too."""
