"""Pairs of an LMDB split, ours or the reference's: a folder with `pairs/` and `imgs/`."""

from __future__ import annotations

from dataclasses import dataclass

from cn_clip.data.pairs import PairSource, RawPair
from cn_clip.data.store import open_split


@dataclass(frozen=True, kw_only=True)
class Options:
    path: str
    """Folder of the split, made by build_lmdb_dataset.py, for example $DATAPATH/lmdb/train."""


def build(options: Options) -> PairSource:
    return LmdbPairs(options.path)


class LmdbPairs:
    def __init__(self, path: str) -> None:
        self._split = open_split(path)
        self.num_images = len(self._split.images)

    def __len__(self) -> int:
        return len(self._split.pairs)

    def read(self, index: int) -> RawPair:
        pair = self._split.pairs.read(index)
        return RawPair(self._split.images.read(pair.image_id), pair.image_id, pair.text_id, pair.caption)
