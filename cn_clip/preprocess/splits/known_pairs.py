"""The pairs that a split has already, so that rows which are added twice are kept once."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cn_clip.data.captions import caption_key
from cn_clip.data.store import PairStore


@dataclass(frozen=True, eq=False)
class KnownCaption:
    """What is there of a caption."""

    image_ids: NDArray[np.int64]
    """Pictures that are paired with it, sorted."""
    has_other_text: bool
    """Its text id is there, but only with another text."""

    def has(self, image_id: int) -> bool:
        place = int(self.image_ids.searchsorted(image_id))
        return place < len(self.image_ids) and int(self.image_ids[place]) == image_id


class KnownPairs:
    """Text id, text and picture of every pair in that order, in 24 bytes a pair; texts are equal if they are to the model."""

    def __init__(self, pairs: PairStore) -> None:
        columns = pairs.columns()
        order = np.lexsort((columns.image_ids, columns.caption_keys, columns.text_ids))
        for column in (columns.text_ids, columns.caption_keys, columns.image_ids):
            # in their place, one after the other: all of a large split are not held twice
            column[:] = column[order]
        self._columns = columns

    def find(self, text_id: int, text: str) -> KnownCaption:
        """By three binary searches."""
        columns = self._columns
        first, last = _stretch(columns.text_ids, text_id)
        begin, end = _stretch(columns.caption_keys[first:last], caption_key(text))
        return KnownCaption(columns.image_ids[first + begin : first + end], first < last and begin == end)


def _stretch(column: NDArray[np.int64], value: int) -> tuple[int, int]:
    """From where to where a sorted column has this value."""
    return int(column.searchsorted(value, "left")), int(column.searchsorted(value, "right"))
