"""How fast the ranks exchange what a step exchanges: features (all-gather) and gradients (all-reduce)."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from cn_clip.parallel.gather import gather_rows, sum_over_ranks
from cn_clip.parallel.ranks import Ranks
from cn_clip.training.diagnosis.finding import Finding, Number, in_bytes

SIZES = (1 << 16, 1 << 20, 1 << 24, 1 << 26)
"""Bytes of this rank that enter a collective: 64 KiB to 64 MiB."""
ROUNDS = 5
SLOW_BYTES_PER_SECOND = {"cuda": 1e9, "cpu": 1e8}
"""Below this a link is taken for one that is not what its owner thinks it is: 10-Gbit Ethernet carries 1.25e9 bytes a
second, and any link of GPUs should carry more; processes of one CPU machine go through its memory."""


@dataclass(frozen=True)
class Bandwidth:
    """Of one process, over its largest size; `bytes_per_second` in the algorithm's sense: the size over the time."""

    gather: dict[int, float]
    """Bytes that this rank gives -> seconds until all have them."""
    reduce: dict[int, float]
    """Bytes of the tensor -> seconds until all have its sum."""
    world_size: int

    @property
    def reduce_bytes_per_second(self) -> float:
        """Bytes of gradients that meet in a second: what a step's time is made of."""
        size = max(self.reduce)
        return size / self.reduce[size]

    @property
    def gather_bytes_per_second(self) -> float:
        """Bytes that arrive at each rank in a second."""
        size = max(self.gather)
        return size * (self.world_size - 1) / self.gather[size]


def measure_bandwidth(ranks: Ranks, sizes: tuple[int, ...] = SIZES) -> Bandwidth:
    """Collective; every rank gets the slowest rank's times."""
    gather: dict[int, float] = {}
    reduce: dict[int, float] = {}
    for size in sizes:
        rows = torch.zeros(size // 4, device=ranks.device)
        gather[size] = _slowest(partial(gather_rows, rows, ranks), ranks)
        reduce[size] = _slowest(partial(sum_over_ranks, rows, ranks), ranks)
    return Bandwidth(gather, reduce, ranks.world_size)


def _slowest(exchange: Callable[[], Tensor], ranks: Ranks) -> float:
    exchange()  # connections are made at the first use
    seconds = []
    for _ in range(ROUNDS):
        _wait(ranks)
        started = time.perf_counter()
        exchange()
        _wait(ranks, alone=True)
        seconds.append(time.perf_counter() - started)
    median = torch.tensor([sorted(seconds)[ROUNDS // 2]], device=ranks.device)
    return float(gather_rows(median, ranks).max())


def _wait(ranks: Ranks, *, alone: bool = False) -> None:
    """Until the device is done, and the other ranks too."""
    if not alone:
        sum_over_ranks(torch.zeros(1, device=ranks.device), ranks)
    if ranks.device.type == "cuda":
        torch.cuda.synchronize(ranks.device)


def check_bandwidth(found: Bandwidth | None, device_type: str) -> Finding:
    """None: one process, which has nobody to talk to."""
    if found is None:
        return Finding(
            check="network",
            says="one process: nothing to exchange. Under torchrun the links between the ranks are measured too",
        )
    numbers: dict[str, Number] = {"world_size": found.world_size}
    for name, times in (("all_gather", found.gather), ("all_reduce", found.reduce)):
        numbers |= {f"{name}_{size}_bytes_seconds": seconds for size, seconds in times.items()}
    says = (
        f"{found.world_size} ranks: all-reduce {in_bytes(found.reduce_bytes_per_second)}/s of gradients, all-gather "
        f"{in_bytes(found.gather_bytes_per_second)}/s into each rank; the smallest takes "
        f"{min(found.reduce.values()) * 1000:.2f} ms"
    )
    slowest = min(found.reduce_bytes_per_second, found.gather_bytes_per_second)
    if slowest < SLOW_BYTES_PER_SECOND.get(device_type, 1e8):
        return Finding(
            check="network",
            says=says,
            verdict="slow",
            numbers=numbers,
            next_step="see that the ranks use the fast link: NCCL_DEBUG=INFO names it, NCCL_SOCKET_IFNAME (GLOO_SOCKET_IFNAME "
            "on the CPU) chooses the interface; then raise train.accumulate so that gradients meet less often",
        )
    return Finding(check="network", says=says, numbers=numbers)
