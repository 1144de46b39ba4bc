"""Pairs a second that the loader of a config's own training set hands over, nobody training beside it."""

from __future__ import annotations

import time
from dataclasses import dataclass

from cn_clip.config.schema import TrainConfig
from cn_clip.data.batches import PairBatch
from cn_clip.parallel.ranks import Ranks
from cn_clip.training.diagnosis.finding import Finding, rounded
from cn_clip.training.timeline import Leg
from cn_clip.training.training_data import TrainingData

SECONDS = 10.0
"""How long is measured, at most."""
FEW_BATCHES = 8
"""Batches that are waited for even if they take longer, up to three times as long."""


@dataclass(frozen=True)
class LoaderRate:
    """Of this rank."""

    first_seconds: float
    """From asking for the loader to its first batch: workers start, sets are opened."""
    pairs_per_second: float
    num_pairs: int
    """That were read after those which lay ready."""
    batch: PairBatch
    """The first one."""


def measure_loader(
    config: TrainConfig, leg: Leg, ranks: Ranks, pad_id: int, seconds: float = SECONDS
) -> LoaderRate:
    """Rate of this rank's loader; all ranks measure at the same time, since they share cores and disks."""
    data = TrainingData(config, leg.sources, leg.order, ranks, pad_id=pad_id)
    started = time.perf_counter()
    batches = iter(data.train_loader(first_step=0, last_step=leg.plan.last_step))
    first = next(batches)
    ready_at = time.perf_counter()
    # what workers had made ready while the first batch was waited for says nothing about their speed
    for _ in range(_num_ready(config)):
        if next(batches, None) is None:
            break
    began, num_pairs, num_batches = time.perf_counter(), 0, 0
    for batch in batches:
        num_pairs, num_batches = num_pairs + len(batch), num_batches + 1
        elapsed = time.perf_counter() - began
        if elapsed > seconds * (1 if num_batches >= FEW_BATCHES else 3):
            break
    elapsed = time.perf_counter() - began
    if num_pairs == 0:  # a set of a few batches: all there is, with the start of the workers
        num_pairs, elapsed = len(first), ready_at - started
    return LoaderRate(ready_at - started, num_pairs / max(elapsed, 1e-9), num_pairs, first)


def _num_ready(config: TrainConfig) -> int:
    return config.data.num_workers * config.data.prefetch


def check_loader(rate: LoaderRate | None, config: TrainConfig) -> Finding:
    """None: the settings have no training pairs. Whether it is fast enough is said where steps are known."""
    if rate is None:
        return Finding(
            check="loader", says="no training pairs are given (--train-data): the loader was not looked at"
        )
    says = (
        f"{rounded(rate.pairs_per_second)} pairs/s a rank with {config.data.num_workers} workers, nothing computed beside; the first "
        f"batch came after {rate.first_seconds:.1f} s"
    )
    numbers = {
        "pairs_per_second": rate.pairs_per_second,
        "first_seconds": rate.first_seconds,
        "num_workers": config.data.num_workers,
        "pairs_read": rate.num_pairs,
    }
    if config.data.num_workers == 0:
        return Finding(
            check="loader",
            says=f"{says}; without workers every step waits for its pictures",
            verdict="slow",
            numbers=numbers,
            next_step="set data.num_workers (--num-workers) to the cores that a rank has",
        )
    return Finding(check="loader", says=says, numbers=numbers)
