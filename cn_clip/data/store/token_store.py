"""Captions of a split as token ids, made once when it was built."""

from __future__ import annotations

from os import PathLike

import numpy as np
from numpy.typing import NDArray

from cn_clip.data.store import layout
from cn_clip.data.store.lmdb_folder import REBUILD
from cn_clip.data.store.store_folder import StoreFolder
from cn_clip.errors import DataError


class TokenStore(StoreFolder):
    """The tokens of `{split}/tokens` by pair position. Picklable."""

    kind = layout.TOKENS_FORMAT

    def __init__(self, path: str | PathLike[str]) -> None:
        super().__init__(path)
        self.tokenizer = self.meta.text("tokenizer") or ""
        """Fingerprint of the tokenizer that made them."""

    def read(self, index: int) -> NDArray[np.uint16]:
        """(tokens,) ids of the whole caption without [CLS] and [SEP]; IndexError outside the store."""
        if not 0 <= index < self.meta.count:
            raise IndexError(f"{self.path} has tokens of {self.meta.count} pairs, not of pair {index}")
        value = self._folder.get(layout.number_key(index))
        try:
            if value is None:
                raise ValueError("there are none")
            return layout.decode_tokens(value)
        except ValueError as error:
            raise DataError(
                f"tokens of pair {index} in {self.path} cannot be read ({error}): {REBUILD}"
            ) from error
