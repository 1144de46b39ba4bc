"""Pairs of an LMDB split, ours or the reference's: a folder with `pairs/` and `imgs/`."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from cn_clip.data.pairs import PairColumns, PairSource, RawPair
from cn_clip.data.permutations import mixed
from cn_clip.data.store import ImageStore, open_split
from cn_clip.parallel.rng import stable_seed


@dataclass(frozen=True, kw_only=True)
class Options:
    path: str
    """Folder of the split, made by build_lmdb_dataset.py, for example $DATAPATH/lmdb/train."""
    captions: Literal["all", "one"] = "all"
    """`all`: an epoch has every caption of every picture; `one`: it has every picture once, with a caption drawn anew."""


def build(options: Options) -> PairSource:
    pairs = LmdbPairs(options.path)
    return pairs if options.captions == "all" else OneCaptionPerPicture(pairs)


class LmdbPairs(PairSource):
    """Every pair of a split."""

    def __init__(self, path: str) -> None:
        self._split = open_split(path)
        self.num_images = len(self._split.images)
        self.content = _content(self._split.images)

    def __len__(self) -> int:
        return len(self._split.pairs)

    def read(self, index: int, *, epoch: int, seed: int, picture: bool = True) -> RawPair:
        pair, tokens = self._split.pairs.read(index), self._split.tokens
        return RawPair(
            self._split.images.read(pair.image_id) if picture else b"",
            pair.image_id,
            pair.text_id,
            pair.caption,
            pair_id=index,
            token_ids=None if tokens is None else tokens.read(index),
            tokenizer=None if tokens is None else tokens.tokenizer,
            hard_negatives=pair.hard_negatives,
            where=f"picture {pair.image_id} of {self._split.images.path} (pair {index}, text id {pair.text_id})",
        )

    def columns(self, *, epoch: int, seed: int) -> PairColumns:
        return self._columns

    def __getstate__(self) -> dict[str, object]:
        # worker processes read pairs one by one, and have no use for the ids of all of them
        return {name: value for name, value in vars(self).items() if name != "_columns"}

    @cached_property
    def _columns(self) -> PairColumns:
        return self._split.pairs.columns()


def _content(images: ImageStore) -> str:
    """Digest of the pictures; of a store that keeps none, what its file shows from outside."""
    if all(shard.content is not None for shard in images.shards):
        return " ".join(str(shard.content) for shard in images.shards)
    file = images.path / "data.mdb"
    status = file.stat()
    return f"{file.resolve()} {status.st_size} {status.st_mtime_ns}"


class OneCaptionPerPicture(PairSource):
    """Every picture of a split once an epoch; which of its captions comes is drawn for each epoch."""

    def __init__(self, pairs: LmdbPairs) -> None:
        self._pairs = pairs
        self.num_images, self.content = pairs.num_images, pairs.content
        image_ids = pairs.columns(epoch=0, seed=0).image_ids
        by_picture = np.argsort(image_ids, kind="stable")
        _, starts, counts = np.unique(image_ids[by_picture], return_index=True, return_counts=True)
        # small numbers: every worker process has a copy of its own where processes are not forked
        small = np.int32 if len(pairs) < 2**31 else np.int64
        self._by_picture, self._starts, self._counts = (
            numbers.astype(small) for numbers in (by_picture, starts, counts)
        )

    def __len__(self) -> int:
        return len(self._starts)

    def read(self, index: int, *, epoch: int, seed: int, picture: bool = True) -> RawPair:
        drawn = self._drawn(np.array([index]), epoch, seed)
        return self._pairs.read(int(drawn[0]), epoch=epoch, seed=seed, picture=picture)

    def columns(self, *, epoch: int, seed: int) -> PairColumns:
        drawn = self._drawn(np.arange(len(self)), epoch, seed)
        every = self._pairs.columns(epoch=epoch, seed=seed)
        return PairColumns(every.image_ids[drawn], every.text_ids[drawn], every.caption_keys[drawn])

    def _drawn(self, pictures: NDArray[np.int64], epoch: int, seed: int) -> NDArray[np.int64]:
        """Pair that stands for each of these pictures in this epoch."""
        choices = mixed(pictures.astype(np.uint64) + np.uint64(stable_seed(seed, epoch)))
        counts = self._counts[pictures].astype(np.uint64)
        places = self._starts[pictures].astype(np.int64) + (choices % counts).astype(np.int64)
        return self._by_picture[places].astype(np.int64)
