"""Which pairs an optimizer step sees: a pure function of (seed, step), so that any step can be started at.

Letters: W ranks, A micro-batches per rank and step, m pairs per micro-batch, N = W·A·m pairs of the global batch.
Epoch e walks `randperm(padded, seed + e) % num_pairs`, the order of torch's DistributedSampler over a padded set; step k
takes positions [kN, (k+1)N), and micro-batch a of rank r is block a·W + r of them. So the *set* of a step does not
depend on W or A.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import torch
from torch.utils.data import Sampler

from cn_clip.errors import DataError


class PairKey(NamedTuple):
    """Which pair to read, and where in the run it stands (what its augmentation is seeded by)."""

    epoch: int
    position: int
    """In the order of the epoch, 0 to padded - 1."""
    pair: int
    """In the source, 0 to num_pairs - 1."""


@dataclass(frozen=True)
class EpochOrder:
    """The order of every epoch."""

    num_pairs: int
    num_padded: int
    """Pairs an epoch walks over, the wrapped-round copies at its end included."""
    global_batch: int
    seed: int
    epochs_before: int = 0
    """Epochs that came before step 0: a stage of a run does not begin with the first order again."""

    @classmethod
    def over(
        cls,
        num_pairs: int,
        *,
        micro_global: int,
        accumulate: int,
        seed: int,
        epoch_end: str = "pad",
        epochs_before: int = 0,
    ) -> EpochOrder:
        """Order for `micro_global` = W·m pairs per micro-batch of all ranks; `epoch_end` as in `data.epoch_end`."""
        if num_pairs == 0:
            raise DataError(
                "there are no pairs: check that the captions name pictures, and build the LMDB again"
            )
        unit = micro_global * accumulate if epoch_end == "pad" else micro_global
        order = cls(
            num_pairs, math.ceil(num_pairs / unit) * unit, micro_global * accumulate, seed, epochs_before
        )
        if order.steps_per_epoch == 0:
            raise DataError(
                f"an epoch of {num_pairs} pairs does not fill one accumulated step of {order.global_batch}: "
                "lower train.accumulate (--accum-freq), or set data.epoch_end=pad"
            )
        return order

    @property
    def steps_per_epoch(self) -> int:
        return self.num_padded // self.global_batch

    def place(self, step: int) -> tuple[int, int]:
        """(epoch, first position) of a step, counted over all epochs of this order."""
        epoch, step_of_epoch = divmod(step, self.steps_per_epoch)
        return self.epochs_before + epoch, step_of_epoch * self.global_batch

    def indices(self, epoch: int) -> torch.Tensor:
        """(num_padded,) index in the source of each position."""
        return self.at(epoch, 0, self.num_padded)

    def at(self, epoch: int, start: int, stop: int) -> torch.Tensor:
        """Indices in the source of positions [start, stop)."""
        permuted = _permutation(self.num_padded, self.seed + epoch)[start:stop]
        return permuted.to(torch.int64) % self.num_pairs

    def block(self, step: int, first: int, count: int) -> list[PairKey]:
        """`count` keys of `step` (counted over all epochs), from the `first`-th pair of its global batch on."""
        epoch, start = self.place(step)
        start += first
        indices = self.at(epoch, start, start + count).tolist()
        return [PairKey(epoch, start + offset, index) for offset, index in enumerate(indices)]


@lru_cache(maxsize=2)  # the loader runs a little ahead, into the next epoch
def _permutation(length: int, seed: int) -> torch.Tensor:
    # the draws do not depend on the type: 4 bytes a pair wherever they can hold its number
    dtype = torch.int32 if length < 2**31 else torch.int64
    return torch.randperm(length, generator=torch.Generator().manual_seed(seed), dtype=dtype)


class MicroBatches(Sampler[list[PairKey]]):
    """This rank's micro-batches of steps [first_step, last_step), A after A; one pass serves a whole run."""

    def __init__(
        self,
        order: EpochOrder,
        *,
        rank: int,
        world_size: int,
        batch_size: int,
        first_step: int,
        last_step: int,
    ) -> None:
        self.order, self.rank, self.world_size, self.batch_size = order, rank, world_size, batch_size
        self.first_step, self.last_step = first_step, last_step
        self.accumulate = order.global_batch // (world_size * batch_size)

    def __len__(self) -> int:
        return (self.last_step - self.first_step) * self.accumulate

    def __iter__(self) -> Iterator[list[PairKey]]:
        for step in range(self.first_step, self.last_step):
            for a in range(self.accumulate):
                block = a * self.world_size + self.rank
                yield self.order.block(step, block * self.batch_size, self.batch_size)


class ListedBatches(Sampler[list[PairKey]]):
    """Batches as they are listed."""

    def __init__(self, batches: Sequence[list[PairKey]]) -> None:
        self.batches = batches

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[list[PairKey]]:
        yield from self.batches


class ValidationBatches(Sampler[list[PairKey]]):
    """This rank's validation batches: epoch 0's shuffled order, every W-th position, as cn-clip has them.

    Shuffled, since the accuracy inside a batch suffers when neighbours share a picture; dealt out as there, since that
    accuracy depends on who is in a batch.
    """

    def __init__(self, order: EpochOrder, *, rank: int, world_size: int, batch_size: int) -> None:
        self.order, self.rank, self.world_size, self.batch_size = order, rank, world_size, batch_size

    def __len__(self) -> int:
        return self.order.num_padded // (self.world_size * self.batch_size)

    def __iter__(self) -> Iterator[list[PairKey]]:
        indices = self.order.indices(epoch=0).tolist()
        keys = [
            PairKey(0, position, indices[position])
            for position in range(self.rank, len(indices), self.world_size)
        ]
        for start in range(0, len(keys), self.batch_size):
            yield keys[start : start + self.batch_size]
