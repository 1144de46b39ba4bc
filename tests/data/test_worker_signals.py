"""Loader processes go on when the whole group of processes is asked to stop, and end when their run ends them."""

from __future__ import annotations

import multiprocessing
import subprocess
import time
from collections.abc import Iterator

import pytest
import torch
from torch.utils.data import DataLoader

from cn_clip.data.loader import Workers


@pytest.fixture
def batches() -> Iterator[Iterator[torch.Tensor]]:
    """Slow batches of two workers, the first of each already there."""
    loader: DataLoader[torch.Tensor] = Workers(num=2).loader(_Slow(), batch_size=1)
    found = iter(loader)
    next(found), next(found)
    yield found


class _Slow(torch.utils.data.Dataset[torch.Tensor]):
    def __len__(self) -> int:
        return 12

    def __getitem__(self, number: int) -> torch.Tensor:
        time.sleep(0.05)
        return torch.tensor(number)


@pytest.mark.parametrize("name", ["TERM", "USR1", "INT", "HUP"])
def test_a_signal_from_outside_loses_no_batch(batches: Iterator[torch.Tensor], name: str) -> None:
    workers = multiprocessing.active_children()
    assert len(workers) == 2
    # from a process of its own: the parent's own SIGTERM ends a worker
    subprocess.run(["kill", f"-{name}", *(str(worker.pid) for worker in workers)], check=True)
    assert [int(batch) for batch in batches] == list(range(2, 12))


def test_the_parent_ends_a_worker(batches: Iterator[torch.Tensor]) -> None:
    for worker in multiprocessing.active_children():
        worker.terminate()
        worker.join(timeout=5)
        assert worker.exitcode == 0
