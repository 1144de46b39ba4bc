"""Global batches in which no picture and no caption comes twice, so that no pair is punished for being right.

Each epoch walks the shuffled order; a pair that meets its own picture or caption in the batch waits for the next one.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from cn_clip.data.pairs import PairColumns, PairSource
from cn_clip.data.sampler import EpochOrder
from cn_clip.errors import DataError

logger = logging.getLogger(__name__)

Indices = NDArray[np.int64]


@dataclass(frozen=True)
class UniqueOrder(EpochOrder):
    """The order of every epoch. Composing one takes a few seconds for 10 million pairs; then any step can be started at."""

    source: PairSource = field(kw_only=True, repr=False, compare=False)
    _composed: dict[int, Indices] = field(default_factory=dict, init=False, repr=False, compare=False)

    @classmethod
    def of(cls, order: EpochOrder, source: PairSource) -> UniqueOrder:
        """Unique batches of the size, and as many, as in `order`."""
        return cls(order.num_pairs, order.num_padded, order.global_batch, order.seed, source=source)

    def at(self, epoch: int, start: int, stop: int) -> torch.Tensor:
        if epoch not in self._composed:
            for old in sorted(self._composed)[:-1]:  # the loader runs a little ahead, into the next epoch
                del self._composed[old]
            self._composed[epoch] = self._compose(epoch)
        return torch.from_numpy(self._composed[epoch])[start:stop]

    def _compose(self, epoch: int) -> Indices:
        columns = self.source.columns(epoch=epoch, seed=self.seed)
        shuffled = super().at(epoch, 0, self.num_padded).numpy()
        pairs, num_left_out = compose(shuffled, columns, self.global_batch, self.steps_per_epoch)
        if num_left_out:
            logger.warning(
                "Epoch %d leaves out %d of %d pairs: their picture or caption is in every batch that had room.",
                epoch + 1,
                num_left_out,
                self.num_pairs,
            )
        return pairs


def compose(shuffled: Indices, columns: PairColumns, batch: int, num_batches: int) -> tuple[Indices, int]:
    """(num_batches * batch,) pairs, no picture or caption twice in a batch, and how many pairs found no place.

    Places that nothing new fits are taken by pairs that have had their turn. DataError when no such batch exists.
    """
    _, first = np.unique(shuffled, return_index=True)
    # without the copies that pad an epoch: they are drawn again where there is room
    once = shuffled[np.sort(first)]
    batches = np.empty((num_batches, batch), np.int64)
    waiting, num_read, again = once[:0], 0, 0
    for number in range(num_batches):
        picked, waiting = _pick(once[:0], waiting, columns, batch)
        while len(picked) < batch and num_read < len(once):
            more = once[num_read : num_read + batch]
            num_read += len(more)
            picked, passed_over = _pick(picked, more, columns, batch)
            waiting = np.concatenate([waiting, passed_over])
        if len(picked) < batch:
            picked = _fill(picked, np.roll(once, -again), columns, batch)
            again += batch  # each batch is filled up from another place
        batches[number] = picked
    return batches.reshape(-1), len(waiting)


def _fill(picked: Indices, pairs: Indices, columns: PairColumns, batch: int) -> Indices:
    for start in range(0, len(pairs), batch):
        picked, _ = _pick(picked, pairs[start : start + batch], columns, batch)
        if len(picked) == batch:
            return picked
    raise DataError(
        f"no {batch} pairs can stand together without a picture or caption that repeats (at most {len(picked)} were "
        "found): lower train.batch_size or train.accumulate, or set data.sampler=shuffled with loss.targets=positives"
    )


def _pick(picked: Indices, pairs: Indices, columns: PairColumns, batch: int) -> tuple[Indices, Indices]:
    """`picked` with those of `pairs` that repeat nothing, up to a full batch; and those passed over, in order."""
    left = np.ones(len(pairs), bool)
    fits = left.copy()
    while len(picked) < batch and fits.any():
        for keys in (columns.image_ids, columns.caption_keys):
            fits &= ~np.isin(keys[pairs], keys[picked])
        candidates = np.flatnonzero(fits)
        # of pairs that exclude each other, one that comes first in both ways surely excludes none that is also taken
        taken = candidates[
            _comes_first(columns.image_ids[pairs[candidates]])
            & _comes_first(columns.caption_keys[pairs[candidates]])
        ][: batch - len(picked)]
        picked = np.concatenate([picked, pairs[taken]])
        left[taken] = fits[taken] = False
    return picked, pairs[left]


def _comes_first(keys: Indices) -> NDArray[np.bool_]:
    """Whether each key is met for the first time."""
    first = np.zeros(len(keys), bool)
    first[np.unique(keys, return_index=True)[1]] = True
    return first
