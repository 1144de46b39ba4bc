"""From pairs to batches, in worker processes that live as long as the run."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Iterable, Iterator, Sized
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from cn_clip.data.batches import Collate, PairBatch
from cn_clip.data.pair_dataset import PairDataset, StreamBatches
from cn_clip.data.pairs import BadPair
from cn_clip.data.sampler import PairKey
from cn_clip.data.worker_signals import outlive_stop_signals
from cn_clip.errors import DataError

logger = logging.getLogger(__name__)

FEW_PAIRS = 1000
"""The share of bad pairs is not judged over fewer than this."""
SHOWN = 20
"""Reasons logged one by one; more are only counted."""


@dataclass(frozen=True, kw_only=True)
class Workers:
    """Processes that read ahead."""

    num: int
    """0 reads in this process."""
    prefetch: int = 2
    """Batches each of them has ready."""
    pin_memory: bool = False
    """Batches lie in memory that a GPU copies from while it computes."""

    def loader(self, dataset: Dataset[Any], **order: Any) -> DataLoader[Any]:  # Any: what DataLoader takes
        return DataLoader(
            dataset,
            num_workers=self.num,
            prefetch_factor=self.prefetch if self.num else None,
            pin_memory=self.pin_memory,
            persistent_workers=self.num > 0,
            worker_init_fn=_begin if self.num else None,
            **order,
        )


class PairLoader:
    """Batches in order; DataError, one sentence, for a pair that cannot be read, or for too many that others stand in for."""

    def __init__(
        self,
        batches: DataLoader[PairBatch | BadPair],
        num_batches: int,
        *,
        max_bad_share: float | None,
        advice: str,
    ) -> None:
        """
        max_bad_share: of the pairs, for which others may stand in; None lets none.
        advice: how to find what cannot be read.
        """
        self._batches, self._num_batches = batches, num_batches
        self._max_bad_share, self._advice = max_bad_share, advice
        self.num_pairs = self.num_bad = 0
        """Pairs handed over, and how many of them stand in for one that could not be read."""

    @classmethod
    def sampled(
        cls,
        dataset: PairDataset,
        sampler: Sampler[list[PairKey]],
        collate: Collate,
        workers: Workers,
        *,
        max_bad_share: float | None = None,
    ) -> PairLoader:
        """Batches of a dataset's pairs in the order of a sampler."""
        batches = workers.loader(dataset, batch_sampler=sampler, collate_fn=collate)
        advice = "cn-clip inspect finds all such pairs of an LMDB"
        return cls(batches, len(cast(Sized, sampler)), max_bad_share=max_bad_share, advice=advice)

    @classmethod
    def streamed(
        cls, batches: StreamBatches, workers: Workers, *, max_bad_share: float | None = None
    ) -> PairLoader:
        """Batches as the workers make them of a stream."""
        loader = workers.loader(batches, batch_size=None, collate_fn=_unchanged)
        advice = "get the shard again, or leave it out"
        return cls(loader, batches.num_batches, max_bad_share=max_bad_share, advice=advice)

    def __len__(self) -> int:
        return self._num_batches

    def __iter__(self) -> Iterator[PairBatch]:
        try:
            for batch in _until_death(self._batches):
                if isinstance(batch, BadPair):
                    raise DataError(f"{batch.reason}; {self._way_out()}")
                self._count(batch)
                yield batch
        finally:
            if self.num_bad:
                logger.warning(
                    "%d of %d pairs could not be read; others stood in for them.",
                    self.num_bad,
                    self.num_pairs,
                )

    def _count(self, batch: PairBatch) -> None:
        self.num_pairs += len(batch)
        for reason in batch.replaced:
            self.num_bad += 1
            if self.num_bad <= SHOWN:
                logger.warning("Another pair stands in for one that cannot be read: %s", reason)
            if self.num_bad == SHOWN:
                logger.warning("Further pairs that cannot be read are only counted.")
        share = self._max_bad_share or 0.0
        if batch.replaced and self.num_bad > share * max(self.num_pairs, FEW_PAIRS):
            raise DataError(
                f"{self.num_bad} of the first {self.num_pairs} pairs cannot be read, more than data.max_bad_share={share}; "
                f"the last: {batch.replaced[-1]}; {self._advice}"
            )

    def _way_out(self) -> str:
        if self._max_bad_share is not None:  # nothing that could stand in could be read either
            return self._advice
        return f"mend it ({self._advice}), or train on without such pairs: data.bad_pairs=skip"


def _until_death(batches: Iterable[PairBatch | BadPair]) -> Iterator[PairBatch | BadPair]:
    try:
        yield from batches
    except (EOFError, ConnectionError) as error:  # the worker died while it handed a batch over
        time.sleep(1)  # torch's own report, which names the signal, follows within moments and is raised here
        raise DataError(f"a loader process died while it handed over a batch: {_OUT_OF_MEMORY}") from error


@contextmanager
def explained_worker_death() -> Iterator[None]:
    """A worker that dies ends the block with a DataError that names the cause.

    Torch notices the death by a signal and raises wherever the main thread stands, not only where it waits for a batch.
    """
    try:
        yield
    except (RuntimeError, OSError) as error:
        if "shared memory" in str(error) and "killed by signal" not in str(error):
            raise DataError(
                f"the loader processes have no room left in shared memory: {_SHARED_MEMORY}"
            ) from error
        found = _DEATH.search(str(error))
        if found is None:
            raise
        said = f"{error} {error.__cause__}"  # the signal may stand in the first report only
        cause = next(
            (text for sign, text in _CAUSES.items() if sign in said),
            f"it ended without a word; {_OUT_OF_MEMORY}",
        )
        raise DataError(f"the loader process {found[1]} died: {cause}") from error


_OUT_OF_MEMORY = "most often memory ran out; lower data.num_workers, data.prefetch or train.batch_size, and run the same command again"
_SHARED_MEMORY = "enlarge /dev/shm (docker run --shm-size=8g), or lower data.num_workers, data.prefetch or train.batch_size"
_DEATH = re.compile(r"DataLoader worker \(pid\S* ([0-9, ]+)\)")
_CAUSES = {
    "Killed": f"it was killed (signal 9): {_OUT_OF_MEMORY}",
    "Bus error": f"a bus error: the shared memory is full ({_SHARED_MEMORY}), or a data.mdb was cut while it was read",
    "Segmentation fault": "a segmentation fault in a decoder or the store: find the picture with cn-clip inspect",
    "Terminated": "it was told to end (signal 15)",
}
"""What torch calls the signal -> what to do about it."""


def _begin(worker: int) -> None:
    torch.set_num_threads(1)  # workers are the parallelism; more threads would take the cores from the model
    outlive_stop_signals()


def _unchanged(batch: PairBatch | BadPair) -> PairBatch | BadPair:
    return batch
