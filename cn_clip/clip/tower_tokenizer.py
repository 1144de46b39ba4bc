"""Captions to ids for a given text tower: the Chinese vocabulary of this package, or the tower's own tokenizer.

Shapes: n captions, L context length.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cn_clip.clip.presets import TextPreset
from cn_clip.clip.tokenizer import default_tokenizer, tokenize_captions, tokenizer_fingerprint

if TYPE_CHECKING:
    from tokenizers import Tokenizer


@dataclass(frozen=True)
class TowerTokenizer:
    """Picklable function captions -> int64 ids [n, L], padded with the tower's padding id."""

    context_length: int
    own: Path | None = None
    """The tower's `tokenizer.json`; None is the Chinese vocabulary."""
    pad_id: int = 0

    @classmethod
    def of(cls, preset: TextPreset, context_length: int, pad_id: int | None = None) -> TowerTokenizer:
        return cls(context_length, preset.tokenizer, preset.pad_id if pad_id is None else pad_id)

    def __call__(self, captions: Sequence[str]) -> Tensor:
        if self.own is None:
            return tokenize_captions(captions, self.context_length)
        tokenizer = _tokenizer(self.own, self.context_length, self.pad_id)
        return torch.tensor([encoding.ids for encoding in tokenizer.encode_batch(list(captions))])

    @property
    def fingerprint(self) -> str | None:
        """Of the ids that stores cache for this tower; None where they cache none."""
        return tokenizer_fingerprint() if self.own is None else None

    def from_ids(self, captions: Sequence[NDArray[np.integer]]) -> Tensor:
        """int64 ids [n, L] from cached ids of that fingerprint."""
        return default_tokenizer().encode_ids(captions, self.context_length)


@cache
def _tokenizer(path: Path, context_length: int, pad_id: int) -> Tokenizer:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.enable_truncation(context_length)
    tokenizer.enable_padding(length=context_length, pad_id=pad_id)
    return tokenizer
