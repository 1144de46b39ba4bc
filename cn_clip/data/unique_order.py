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
_MANY = 0.01  # of the pairs: a few that an epoch leaves out have their turn in the next


@dataclass(frozen=True)
class UniqueOrder(EpochOrder):
    """The order of every epoch. Composing one takes a few seconds for 10 million pairs; then any step can be started at."""

    source: PairSource = field(kw_only=True, repr=False, compare=False)
    _composed: dict[int, Indices] = field(default_factory=dict, init=False, repr=False, compare=False)

    @classmethod
    def of(cls, order: EpochOrder, source: PairSource) -> UniqueOrder:
        """Unique batches of the size, and as many, as in `order`."""
        return cls(**vars(order), source=source)

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
            level = logging.WARNING if num_left_out > _MANY * self.num_pairs else logging.INFO
            logger.log(
                level,
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
    pairs = once
    for keys in (columns.image_ids, columns.caption_keys):
        pairs = pairs[_thinned(keys[pairs], num_batches)]
    batches = np.empty((num_batches, batch), np.int64)
    waiting, num_read, again = pairs[:0], 0, 0
    for number in range(num_batches):
        picked, waiting = _pick(pairs[:0], waiting, columns, batch)
        while len(picked) < batch and num_read < len(pairs):
            more = pairs[num_read : num_read + batch]
            num_read += len(more)
            picked, passed_over = _pick(picked, more, columns, batch)
            waiting = np.concatenate([waiting, passed_over])
        if len(picked) < batch:
            picked, again = _fill(picked, once, again, columns, batch)
        batches[number] = picked
    return batches.reshape(-1), len(once) - len(pairs) + len(waiting)


def _thinned(keys: Indices, most: int) -> NDArray[np.bool_]:
    """Which of these to keep so that no key comes more often than `most`, evenly over their order.

    More than one a batch have no place; left among those that wait, they would be looked at for every batch.
    """
    by_key = np.argsort(keys, kind="stable")
    _, starts, counts = np.unique(keys[by_key], return_index=True, return_counts=True)
    place = np.arange(len(keys)) - np.repeat(starts, counts)
    count = np.repeat(counts, counts)
    kept = np.empty(len(keys), bool)
    kept[by_key] = (count <= most) | ((place + 1) * most // count > place * most // count)
    return kept


def _fill(
    picked: Indices, pairs: Indices, start: int, columns: PairColumns, batch: int
) -> tuple[Indices, int]:
    """A full batch with the next pairs from `start` on, round and round; and where the next one may begin."""
    for read in range(0, len(pairs), batch):
        places = (start + np.arange(read, min(read + batch, len(pairs)))) % len(pairs)
        picked, _ = _pick(picked, pairs[places], columns, batch)
        if len(picked) == batch:
            return picked, (start + read + batch) % len(pairs)
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
