"""Pairs and batches of pairs, as the loader hands them over.

Shapes: B pairs, C H W picture, L tokens of the longest caption of the batch.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.multiprocessing import get_sharing_strategy
from torch.utils.data import get_worker_info

from cn_clip.data.captions import caption_key
from cn_clip.data.pairs import BadPair


class Tokenizer(Protocol):
    """Captions to (n, L) int64 ids, padded at the end."""

    @property
    def fingerprint(self) -> str | None:
        """Which cached ids `from_ids` takes; None for none."""
        ...

    def __call__(self, captions: Sequence[str]) -> Tensor: ...

    def from_ids(self, captions: Sequence[NDArray[np.uint16]]) -> Tensor:
        """The same as for the captions whose cached ids these are."""
        ...


@dataclass(frozen=True)
class Pair:
    """One picture, read and transformed, with its caption."""

    image_CHW: Tensor
    """uint8 as decoded, or floats already normalised; or (E,) its features, where a run has them."""
    caption: str
    image_id: int
    text_id: int
    pair_id: int
    """Equal for copies of one pair, which must not count as each other's negatives."""
    position: int
    """In the order of the epoch."""
    token_ids: NDArray[np.uint16] | None = None
    """Cached ids of the caption, where the tokenizer of this run gave them."""
    hard_negatives: tuple[str, ...] = ()
    """Captions that are wrong for the picture; no more than the batch takes."""
    replaced: tuple[str, ...] = ()
    """Why each pair before it in this place could not be read, when this one stands in."""


@dataclass(frozen=True)
class Negatives:
    """Wrong captions that come with the pairs of a micro-batch: K = B·k, those of pair i at [i·k, (i + 1)·k)."""

    tokens_KL: Tensor
    keys_K: Tensor
    """Hash of each caption's text."""
    is_filler_K: Tensor
    """Where a pair has fewer than k: such a caption counts nowhere."""

    def each(self, change: Callable[[Tensor], Tensor]) -> Negatives:
        return Negatives(change(self.tokens_KL), change(self.keys_K), change(self.is_filler_K))


@dataclass(frozen=True)
class PairBatch:
    """A micro-batch."""

    images_BCHW: Tensor
    """Or (B, E) their features, where a run has them."""
    tokens_BL: Tensor
    image_ids_B: Tensor
    text_ids_B: Tensor
    caption_keys_B: Tensor
    """Hash of each caption's text."""
    pair_ids_B: Tensor
    positions_B: Tensor
    replaced: tuple[str, ...] = ()
    """What could not be read: a reason for each pair another one stands in for."""
    negatives: Negatives | None = None
    """Hard negatives of the pairs, as many for each."""

    def __len__(self) -> int:
        return len(self.positions_B)

    def to(self, device: torch.device) -> PairBatch:
        return self.each(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> PairBatch:
        """Called by torch's loader, so that the copy to a GPU runs beside the arithmetic."""
        return self.each(Tensor.pin_memory)

    def each(self, change: Callable[[Tensor], Tensor]) -> PairBatch:
        """The batch with every tensor changed alike."""
        return replace(
            self,
            images_BCHW=change(self.images_BCHW),
            tokens_BL=change(self.tokens_BL),
            image_ids_B=change(self.image_ids_B),
            text_ids_B=change(self.text_ids_B),
            caption_keys_B=change(self.caption_keys_B),
            pair_ids_B=change(self.pair_ids_B),
            positions_B=change(self.positions_B),
            negatives=None if self.negatives is None else self.negatives.each(change),
        )

    def split(self, sizes: Sequence[int], pad_id: int) -> list[PairBatch]:
        """The batch cut into smaller ones of these sizes, each without padding that only the others need."""
        starts = [sum(sizes[:number]) for number in range(len(sizes))]
        return [self._part(start, start + size, pad_id) for start, size in zip(starts, sizes, strict=True)]

    def _part(self, start: int, stop: int, pad_id: int) -> PairBatch:
        negatives, num = self.negatives, len(self)
        part = replace(self, negatives=None).each(lambda rows_B: rows_B[start:stop])
        if negatives is not None:
            each = len(negatives.keys_K) // num
            negatives = negatives.each(lambda rows_K: rows_K[start * each : stop * each])
            negatives = replace(negatives, tokens_KL=trim_padding(negatives.tokens_KL, pad_id))
        return replace(part, tokens_BL=trim_padding(part.tokens_BL, pad_id), negatives=negatives, replaced=())


@dataclass(frozen=True)
class Collate:
    """Pairs to a batch; captions are tokenised together and cut to the longest, which no feature depends on."""

    tokenizer: Tokenizer
    pad_id: int = 0
    num_negatives: int = 0
    """Hard negatives of each pair; one that has fewer gets fillers."""

    def __call__(self, pairs: Sequence[Pair | BadPair]) -> PairBatch | BadPair:
        good = [pair for pair in pairs if isinstance(pair, Pair)]
        for pair in pairs:
            if isinstance(pair, BadPair):
                return pair
        return PairBatch(
            images_BCHW=stack_pictures([pair.image_CHW for pair in good]),
            tokens_BL=trim_padding(self._tokens(good), self.pad_id),
            image_ids_B=torch.tensor([pair.image_id for pair in good]),
            text_ids_B=torch.tensor([pair.text_id for pair in good]),
            caption_keys_B=torch.tensor([caption_key(pair.caption) for pair in good]),
            pair_ids_B=torch.tensor([pair.pair_id for pair in good]),
            positions_B=torch.tensor([pair.position for pair in good]),
            replaced=tuple(reason for pair in good for reason in pair.replaced),
            negatives=self._negatives(good) if self.num_negatives else None,
        )

    def _negatives(self, pairs: Sequence[Pair]) -> Negatives:
        captions = [
            (pair.hard_negatives + ("",) * self.num_negatives)[: self.num_negatives] for pair in pairs
        ]
        num_own = [min(len(pair.hard_negatives), self.num_negatives) for pair in pairs]
        all_captions = [caption for own in captions for caption in own]
        return Negatives(
            tokens_KL=trim_padding(self.tokenizer(all_captions), self.pad_id),
            keys_K=torch.tensor([caption_key(caption) for caption in all_captions]),
            is_filler_K=torch.tensor(
                [place >= num for num in num_own for place in range(self.num_negatives)]
            ),
        )

    def _tokens(self, pairs: Sequence[Pair]) -> Tensor:
        cached = [pair.token_ids for pair in pairs if pair.token_ids is not None]
        if len(cached) == len(pairs):
            return self.tokenizer.from_ids(cached)
        return self.tokenizer([pair.caption for pair in pairs])


def stack_pictures(images_CHW: Sequence[Tensor]) -> Tensor:
    """(B, C, H, W); pictures of 8 bits with colours next to each other in memory, as most of them come.

    Turning each one on the way would cost as much as its resize, and one order for all spares compiled models a second form.
    """
    if images_CHW[0].dtype is torch.uint8:
        return _stack([image_CHW.permute(1, 2, 0).contiguous() for image_CHW in images_CHW]).permute(
            0, 3, 1, 2
        )
    return _stack(images_CHW)


def _stack(images: Sequence[Tensor]) -> Tensor:
    alike = all(image.is_contiguous() and image.dtype == images[0].dtype for image in images)
    if get_worker_info() is None or not alike or get_sharing_strategy() != "file_descriptor":
        return torch.stack(list(images))
    return _stack_in_shared_memory(images)


def _stack_in_shared_memory(images: Sequence[Tensor]) -> Tensor:
    """In the memory that a worker's batches are handed over in, so that torch has nothing to copy there.

    Written through its file: by way of the memory's address each 4 kB would cost a page fault, more than the copy itself.
    """
    num_bytes = images[0].nbytes
    storage = torch.UntypedStorage._new_shared(num_bytes * len(images), device="cpu")
    file, _ = storage._share_fd_cpu_()
    for number, image in enumerate(images):
        if os.pwrite(file, image.numpy().data, number * num_bytes) != num_bytes:
            raise OSError(
                errno.ENOSPC, "the shared memory is full (enlarge /dev/shm, or lower data.prefetch)"
            )
    return torch.empty(0, dtype=images[0].dtype).set_(storage).view(len(images), *images[0].shape)


def trim_padding(tokens_BL: Tensor, pad_id: int) -> Tensor:
    """Tokens without the columns that are padding in every row."""
    longest = int(tokens_BL.ne(pad_id).sum(1).max())
    return tokens_BL[:, :longest]
