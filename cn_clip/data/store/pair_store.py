"""Pairs of a split by position, in both formats of `layout`."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cn_clip.data.captions import caption_key
from cn_clip.data.store import layout
from cn_clip.data.store.lmdb_folder import REBUILD
from cn_clip.data.store.store_folder import StoreFolder
from cn_clip.errors import DataError


@dataclass(frozen=True, slots=True)
class PairRecord:
    """One caption and the picture it belongs to."""

    image_id: int
    text_id: int
    caption: str
    """As it was written; `captions.preprocess_text` makes it ready for the tokenizer."""
    hard_negatives: tuple[str, ...] = ()
    """Captions that are wrong for the picture, though they look right."""


@dataclass(frozen=True, eq=False)
class PairColumns:
    """The ids of all pairs, (number of pairs,) each."""

    image_ids: NDArray[np.int64]
    text_ids: NDArray[np.int64]
    caption_keys: NDArray[np.int64]
    """`captions.caption_key` of each caption."""


class PairStore(StoreFolder):
    """The pairs of `{split}/pairs` by position, 0 to `len() - 1`. Picklable."""

    kind = layout.PAIRS_FORMAT

    def read(self, index: int) -> PairRecord:
        """Pair at this position; IndexError outside the store, DataError for a damaged value."""
        if not 0 <= index < self.meta.count:
            raise IndexError(f"{self.path} has {self.meta.count} pairs, no pair {index}")
        value = self._folder.get(layout.number_key(index))
        if value is None:
            raise DataError(f"{self.path} has no pair {index}, though it counts {len(self)}: {REBUILD}")
        decode = layout.decode_pair if self.version == layout.VERSION else layout.decode_reference_pair
        try:
            return PairRecord(*decode(value))
        except (ValueError, RecursionError) as error:
            raise DataError(f"pair {index} of {self.path} cannot be read ({error}): {REBUILD}") from error

    @property
    def columns_rows(self) -> int | None:
        """Pairs in each block of columns; None in a store made without them."""
        rows = self.meta.fields.get("columns")
        return rows if isinstance(rows, int) and rows > 0 else None

    def columns(self) -> PairColumns:
        """The ids of every pair; pair by pair, which takes minutes for ten million, in a store made without columns."""
        columns = np.empty((3, len(self)), np.int64)
        if self.columns_rows is not None:
            self._read_columns(columns, self.columns_rows)
        else:
            for index in range(len(self)):
                pair = self.read(index)
                columns[:, index] = pair.image_id, pair.text_id, caption_key(pair.caption)
        return PairColumns(*columns)

    def _read_columns(self, columns: NDArray[np.int64], rows: int) -> None:
        for block, start in enumerate(range(0, len(self), rows)):
            value = self._folder.get(layout.columns_key(block))
            there = columns[:, start : start + rows]
            try:
                block_columns = layout.decode_columns(value or b"")
                if block_columns.shape != there.shape:
                    raise ValueError(f"{block_columns.shape[1]} rows, not {there.shape[1]}")
                there[:] = block_columns
            except ValueError as error:
                raise DataError(
                    f"{self.path} is damaged (columns of the pairs from {start} on): {REBUILD}"
                ) from error
