"""Pairs in memory: pictures of one colour each, some of them damaged."""

from __future__ import annotations

import io
import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import pytest
from PIL import Image

from cn_clip.clip.tower_tokenizer import TowerTokenizer
from cn_clip.clip.transform import fast_transform
from cn_clip.data.batches import Collate
from cn_clip.data.pair_dataset import ReadPair
from cn_clip.data.pairs import BadPair, PairColumns, PairSource, PairStream, RawPair
from cn_clip.errors import DataError


def png(number: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (8, 8), (number, 0, 0)).save(file, "PNG")
    return file.getvalue()


def raw_pair(number: int, cut: bool = False) -> RawPair:
    picture = png(number)[: 30 if cut else None]
    return RawPair(picture, number, 1000 + number, f"图片 {number}", pair_id=number)


@dataclass(frozen=True)
class MemoryPairs(PairSource):
    """Pair i is a picture of red value i."""

    num_pairs: int = 20
    missing: tuple[int, ...] = ()
    """Pairs whose store has lost them."""
    cut: tuple[int, ...] = ()
    """Pairs whose picture is cut."""
    deadly: int = -1
    """The pair whose reader is killed."""

    @property
    def num_images(self) -> int:  # type: ignore[override]  # an attribute of the contract
        return self.num_pairs

    def __len__(self) -> int:
        return self.num_pairs

    def read(self, index: int, *, epoch: int, seed: int, picture: bool = True) -> RawPair:
        if index == self.deadly:
            os.kill(os.getpid(), signal.SIGKILL)
        if index in self.missing:
            raise DataError(f"memory has no pair {index}")
        return raw_pair(index, cut=index in self.cut)

    def columns(self, *, epoch: int, seed: int) -> PairColumns:
        numbers = np.arange(self.num_pairs)
        return PairColumns(numbers, numbers, numbers)


@dataclass(frozen=True)
class MemoryStream(PairStream):
    """Lane k of n gives pairs k, k + n, ... over and over."""

    num_pairs: int = 24  # type: ignore[misc]  # an attribute of the contract
    bad: tuple[int, ...] = ()
    cut: tuple[int, ...] = ()

    @property
    def num_images(self) -> int:  # type: ignore[override]  # an attribute of the contract
        return self.num_pairs

    def lane(self, lane: int, num_lanes: int, *, first: int, seed: int) -> Iterator[RawPair | BadPair]:
        numbers = range(lane, self.num_pairs, num_lanes)
        item = first
        while True:
            number = numbers[item % len(numbers)]
            item += 1
            yield BadPair(f"no pair {number}") if number in self.bad else raw_pair(number, number in self.cut)


@pytest.fixture
def memory_pairs() -> Callable[..., MemoryPairs]:
    return MemoryPairs


@pytest.fixture
def memory_stream() -> Callable[..., MemoryStream]:
    return MemoryStream


@pytest.fixture
def read_pair() -> ReadPair:
    return ReadPair(read_image=fast_transform(4), seed=5)


@pytest.fixture
def collate() -> Collate:
    return Collate(TowerTokenizer(context_length=16))
