"""From a source of pairs to batches, in worker processes that live as long as the run."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sized
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from cn_clip.data.batches import BadPair, Collate, Pair, PairBatch
from cn_clip.data.pairs import PairSource
from cn_clip.data.randomness import seeded_by
from cn_clip.data.sampler import PairKey
from cn_clip.errors import DataError

ReadImage = Callable[[bytes], Tensor]
"""An encoded picture -> (C, H, W); raises DataError when it cannot be decoded."""


@dataclass(frozen=True)
class PairDataset(Dataset[Pair | BadPair]):
    """Pairs of a source by key, read and transformed; what is random in a transform is seeded by the key."""

    source: PairSource
    read_image: ReadImage
    seed: int

    def __getitem__(self, key: PairKey) -> Pair | BadPair:
        try:
            raw = self.source.read(key.pair)
        except DataError as error:
            return BadPair(str(error))
        try:
            with seeded_by(self.seed, key.epoch, key.position):
                image_CHW = self.read_image(raw.image_bytes)
        except DataError as error:
            return BadPair(f"picture {raw.image_id} of pair {key.pair} (text id {raw.text_id}): {error}")
        return Pair(image_CHW, raw.caption, raw.image_id, raw.text_id, key.position)


class PairLoader:
    """Batches in the order of a sampler; raises DataError with one sentence for a pair that cannot be read."""

    def __init__(
        self,
        dataset: PairDataset,
        sampler: Sampler[list[PairKey]],
        collate: Collate,
        *,
        num_workers: int,
        pin_memory: bool,
    ) -> None:
        self._num_batches = len(cast(Sized, sampler))
        self._loader = DataLoader(
            dataset,
            batch_sampler=sampler,
            collate_fn=collate,
            num_workers=num_workers,
            pin_memory=pin_memory,
            persistent_workers=num_workers > 0,
            worker_init_fn=_one_thread if num_workers else None,
        )

    def __len__(self) -> int:
        return self._num_batches

    def __iter__(self) -> Iterator[PairBatch]:
        for batch in self._loader:
            if isinstance(batch, BadPair):
                raise DataError(batch.reason)
            yield batch


def _one_thread(worker: int) -> None:
    torch.set_num_threads(1)  # workers are the parallelism; more threads would take the cores from the model
