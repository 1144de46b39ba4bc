"""The loss of the global batch from the features that each rank has of its own pairs.

Letters as in `accumulation`: R pairs of this rank, N of all, T = R·(1 + k) captions of this rank with k hard negatives a
pair, M = W·T of all, E embedding.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from cn_clip.data.batches import PairBatch
from cn_clip.losses.pair import PairGradients, PairIds, PairLoss
from cn_clip.parallel.gather import any_rank, gather_rows, sum_over_ranks, sum_rows_to_owner
from cn_clip.parallel.ranks import Ranks
from cn_clip.training.out_of_memory import MicroBatchTooLargeError

OUT_OF_MEMORY = 1 << 40
"""Notice of a rank that ran out of memory; lower bits are the caller's."""


@dataclass(frozen=True)
class Features:
    """What the model says of one micro-batch."""

    image: Tensor
    """(m, E) unit length."""
    text: Tensor
    """(T, E) unit length: of the pairs' captions, then of their hard negatives."""
    scale: Tensor
    """() factor of the cosine."""
    bias: Tensor | None = None
    """() of the sigmoid loss."""
    own_loss: Tensor | None = None
    """() loss of these pairs alone, as a share of the mean over the global batch."""


class RowGradients(NamedTuple):
    image: Tensor
    text: Tensor


@dataclass(frozen=True)
class GlobalLoss:
    """Loss of the global batch and its derivatives for this rank's pairs, complete."""

    loss: Tensor
    image_RE: Tensor
    text_TE: Tensor
    """The R captions of the pairs, then their hard negatives."""
    scale: Tensor
    image_accuracy: Tensor
    text_accuracy: Tensor
    bias: Tensor
    """() 0 where the loss has none."""
    notices: int = 0
    """Bits that any rank raised."""
    numbers: Mapping[str, Tensor] = field(default_factory=dict)
    """Diagnostics of the batch, where they were asked for."""

    def rows(self, start: int, stop: int) -> RowGradients:
        """Derivatives of pairs [start, stop) of this rank."""
        num_pairs = len(self.image_RE)
        extra = (len(self.text_TE) - num_pairs) // num_pairs
        own = self.text_TE[start:stop]
        negatives = self.text_TE[num_pairs + start * extra : num_pairs + stop * extra]
        return RowGradients(self.image_RE[start:stop], torch.cat([own, negatives]) if extra else own)


@dataclass(frozen=True)
class Gathered:
    """Who is in the global batch."""

    row_ids: PairIds
    """Of this rank's R pairs."""
    column_ids: PairIds
    """Of all M captions: rank by rank the pairs' own, then their hard negatives."""
    notices: int
    """Bits that any rank raised."""


def gather_ids(
    batches: Sequence[PairBatch], ranks: Ranks, *, gather: bool, notices: int = 0, is_short: bool = False
) -> Gathered:
    """Ids of all ranks in one collective, which carries `notices` along.

    Raises MicroBatchTooLargeError on every rank where one of them `is_short` of memory.
    """
    notices |= OUT_OF_MEMORY if is_short else 0
    rows_5R = _row_ids(batches)
    columns_5T = torch.cat([rows_5R, *_negative_ids(batches)], dim=1)
    if gather and ranks.world_size > 1:
        raised_1T = torch.full_like(columns_5T[:1], notices)
        all_6M = gather_rows(torch.cat([columns_5T, raised_1T]).T.contiguous(), ranks).T
        columns_5T = all_6M[:5]
        notices = _any_bit(all_6M[5, :: len(raised_1T[0])].tolist())
    elif ranks.world_size > 1:
        bits = [1 << number for number in range(41)]
        raised = any_rank([bool(notices & bit) for bit in bits], ranks)
        notices = sum(bit for bit, is_raised in zip(bits, raised, strict=True) if is_raised)
    if notices & OUT_OF_MEMORY:
        raise MicroBatchTooLargeError
    return Gathered(PairIds(*rows_5R), PairIds(*columns_5T.contiguous()), notices)


def _any_bit(numbers: Sequence[int]) -> int:
    found = 0
    for number in numbers:
        found |= number
    return found


def _row_ids(batches: Sequence[PairBatch]) -> Tensor:
    """(5, R) in the order of PairIds' fields."""
    return torch.cat(
        [
            torch.stack([b.positions_B, b.pair_ids_B, b.image_ids_B, b.text_ids_B, b.caption_keys_B])
            for b in batches
        ],
        dim=1,
    )


def _negative_ids(batches: Sequence[PairBatch]) -> list[Tensor]:
    """(5, m·k) of each micro-batch with hard negatives: captions without a picture or a place."""
    found = []
    for batch in batches:
        if batch.negatives is not None:
            keys = batch.negatives.keys_K
            none = torch.full_like(keys, -1)
            # a filler has no id at all, so it counts nowhere
            pair_ids = torch.where(batch.negatives.is_filler_K, none, none - 1)
            found.append(torch.stack([none, pair_ids, none - 1, none - 1, keys]))
    return found


def global_loss(
    pair_loss: PairLoss,
    features: Sequence[Features],
    gathered: Gathered,
    ranks: Ranks,
    *,
    gather: bool,
    diagnose: bool = False,
) -> GlobalLoss:
    """Loss over the pairs of all ranks (`gather`), or the mean over ranks of the loss inside each."""
    image_RE = torch.cat([f.image.detach().float() for f in features])
    text_TE = _captions_then_negatives(features)
    scale = features[-1].scale.detach().float()
    if not gather:
        own = pair_loss(
            image_RE,
            text_TE,
            scale,
            gathered.row_ids,
            gathered.column_ids,
            lambda columns_kN: columns_kN[None],
        )
        return _local_mean(own, gathered, ranks)
    text_ME = gather_rows(text_TE, ranks)
    found = pair_loss(
        image_RE,
        text_ME,
        scale,
        gathered.row_ids,
        gathered.column_ids,
        lambda columns_kN: gather_rows(columns_kN[None], ranks),
    )
    shares = sum_over_ranks(torch.stack([found.loss, found.scale, found.image_hits]), ranks)
    num_pairs = len(image_RE) * ranks.world_size
    return GlobalLoss(
        loss=shares[0],
        image_RE=found.image_RE,
        text_TE=sum_rows_to_owner(found.text_NE, ranks),
        scale=shares[1],
        image_accuracy=shares[2] / num_pairs,
        text_accuracy=found.text_hits / num_pairs,
        bias=torch.zeros_like(shares[0]),
        notices=gathered.notices,
    )


def _captions_then_negatives(features: Sequence[Features]) -> Tensor:
    """(T, E) of this rank: the captions of all micro-batches, then all their hard negatives."""
    own = [f.text.detach().float()[: len(f.image)] for f in features]
    negatives = [f.text.detach().float()[len(f.image) :] for f in features]
    return torch.cat([*own, *negatives])


def _local_mean(own: PairGradients, gathered: Gathered, ranks: Ranks) -> GlobalLoss:
    world_size, num_rows = ranks.world_size, len(own.image_RE)
    shares = torch.stack([own.loss, own.scale, own.image_hits / num_rows, own.text_hits / num_rows])
    loss, scale, image_accuracy, text_accuracy = sum_over_ranks(shares, ranks) / world_size
    return GlobalLoss(
        loss,
        own.image_RE / world_size,
        own.text_NE / world_size,
        scale,
        image_accuracy,
        text_accuracy,
        bias=torch.zeros_like(loss),
        notices=gathered.notices,
    )
