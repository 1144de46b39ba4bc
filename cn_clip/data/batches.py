"""Pairs and batches of pairs, as the loader hands them over.

Shapes: B pairs, C H W picture, L tokens of the longest caption of the batch.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

Tokenize = Callable[[Sequence[str]], Tensor]
"""Captions -> (n, context length) int64 ids, zero padded."""


@dataclass(frozen=True)
class Pair:
    """One picture, read and transformed, with its caption."""

    image_CHW: Tensor
    """uint8 as decoded, or floats already normalised."""
    caption: str
    image_id: int
    text_id: int
    position: int
    """In the order of the epoch."""


@dataclass(frozen=True)
class BadPair:
    """A pair that cannot be read, and why; workers pass it on, since an exception would reach the user as a traceback."""

    reason: str


@dataclass(frozen=True)
class PairBatch:
    """A micro-batch."""

    images_BCHW: Tensor
    tokens_BL: Tensor
    image_ids_B: Tensor
    text_ids_B: Tensor
    caption_keys_B: Tensor
    """Hash of each caption's text."""
    positions_B: Tensor

    def __len__(self) -> int:
        return len(self.positions_B)

    def to(self, device: torch.device) -> PairBatch:
        return self._each(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> PairBatch:
        """Called by torch's loader, so that the copy to a GPU runs beside the arithmetic."""
        return self._each(Tensor.pin_memory)

    def _each(self, change: Callable[[Tensor], Tensor]) -> PairBatch:
        return PairBatch(*(change(getattr(self, field.name)) for field in fields(self)))


@dataclass(frozen=True)
class Collate:
    """Pairs to a batch; captions are tokenised together and cut to the longest, which no feature depends on."""

    tokenize: Tokenize
    pad_id: int = 0

    def __call__(self, pairs: Sequence[Pair | BadPair]) -> PairBatch | BadPair:
        good = [pair for pair in pairs if isinstance(pair, Pair)]
        for pair in pairs:
            if isinstance(pair, BadPair):
                return pair
        return PairBatch(
            images_BCHW=torch.stack([pair.image_CHW for pair in good]),
            tokens_BL=trim_padding(self.tokenize([pair.caption for pair in good]), self.pad_id),
            image_ids_B=torch.tensor([pair.image_id for pair in good]),
            text_ids_B=torch.tensor([pair.text_id for pair in good]),
            caption_keys_B=torch.tensor([caption_key(pair.caption) for pair in good]),
            positions_B=torch.tensor([pair.position for pair in good]),
        )


def trim_padding(tokens_BL: Tensor, pad_id: int) -> Tensor:
    """Tokens without the columns that are padding in every row."""
    longest = int(tokens_BL.ne(pad_id).sum(1).max())
    return tokens_BL[:, :longest]


def caption_key(caption: str) -> int:
    """Signed 64-bit hash of a caption's text, the same in every process."""
    return int.from_bytes(
        hashlib.blake2b(caption.encode("utf-8", "surrogatepass"), digest_size=8).digest(),
        "little",
        signed=True,
    )
