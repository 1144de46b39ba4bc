"""Up to which global batch `data.sampler=unique` holds nearly all pairs, tried out with the sampler itself."""

from __future__ import annotations

import numpy as np

from cn_clip.data.store import PairColumns
from cn_clip.data.unique_order import compose
from cn_clip.errors import DataError

MAX_PAIRS = 100_000
"""That an epoch is put together of for trial: seconds for all sizes."""
_PARTS = (1 / 16, 1 / 8, 1 / 4, 3 / 8, 1 / 2, 5 / 8, 3 / 4, 7 / 8, 1)
"""Of the bound."""
_LEFT_OUT = 0.01
"""Of the pairs: with more, the sampler warns."""


def advise_batch(columns: PairColumns, bound: int) -> int:
    """The largest size tried, up to which all leave out few pairs; above `bound` no batch can hold all.

    Half of the bound for many pairs. Approximate: of one shuffling, at a few sizes, since single sizes happen to divide well.
    """
    num_pairs = len(columns.image_ids)
    if num_pairs > MAX_PAIRS or bound < 2:
        return max(bound // 2, 1)
    shuffled = np.random.default_rng(0).permutation(num_pairs)
    found = 1
    for batch in sorted({max(2, int(bound * part)) for part in _PARTS}):
        # the last batch is filled up with pairs that have been there, as in training
        num_batches = -(-num_pairs // batch)
        try:
            _, num_left_out = compose(shuffled, columns, batch, num_batches)
        except DataError:  # no such batch exists
            break
        if num_left_out > _LEFT_OUT * num_pairs:
            break
        found = batch
    return found
