"""Who is in the global batch, and what its ranks tell one another on the way: ids of pairs and bits of notices, in one collective.

Letters as in `accumulation`: R pairs of this rank, T = R·(1 + k) captions of this rank with k hard negatives a pair,
M = W·T of all; m pairs of a micro-batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from operator import or_

import torch
from torch import Tensor

from cn_clip.data.batches import PairBatch
from cn_clip.losses.pair import PairIds
from cn_clip.parallel.gather import any_rank, gather_rows
from cn_clip.parallel.ranks import Ranks
from cn_clip.training.out_of_memory import MicroBatchTooLargeError

OUT_OF_MEMORY = 1 << 40
"""Notice of a rank that ran out of memory; lower bits are the caller's."""


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
        notices = reduce(or_, all_6M[5, :: raised_1T.shape[1]].tolist())
    elif ranks.world_size > 1:
        bits = [1 << number for number in range(OUT_OF_MEMORY.bit_length())]
        raised = any_rank([bool(notices & bit) for bit in bits], ranks)
        notices = sum(bit for bit, is_raised in zip(bits, raised, strict=True) if is_raised)
    if notices & OUT_OF_MEMORY:
        raise MicroBatchTooLargeError
    return Gathered(PairIds(*rows_5R), PairIds(*columns_5T.contiguous()), notices)


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
