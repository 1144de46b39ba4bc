"""Ranks that start again in a store which an earlier try has written to."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import pytest
from torch import distributed as dist

from cn_clip.parallel.fresh_store import fresh_store

SOON = timedelta(seconds=10)


@pytest.fixture
def store() -> dist.Store:
    return dist.HashStore()


def one_try(store: dist.Store, world_size: int, order: Sequence[int] | None = None) -> list[dist.Store]:
    """The store of each rank, whose ranks start in `order`."""
    with ThreadPoolExecutor(world_size) as threads:
        found = {
            rank: threads.submit(fresh_store, store, rank=rank, world_size=world_size, timeout=SOON)
            for rank in order or range(world_size)
        }
        return [found[rank].result() for rank in range(world_size)]


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 0, 2)])
def test_a_later_try_does_not_see_the_keys_of_an_earlier_one(
    store: dist.Store, order: tuple[int, ...]
) -> None:
    for number in range(5):
        stores = one_try(store, 3, order)
        assert not any(one.check(["address"]) for one in stores)
        stores[1].set("address", f"of try {number}")
        assert {one.get("address") for one in stores} == {f"of try {number}".encode()}


def test_a_rank_that_comes_before_rank_0_waits_for_its_offer(store: dist.Store) -> None:
    one_try(store, 2)
    with ThreadPoolExecutor(2) as threads:
        early = threads.submit(fresh_store, store, rank=1, world_size=2, timeout=SOON)
        with pytest.raises(TimeoutError):
            early.result(timeout=0.2)  # it has signed under the offer of the earlier try
        main = threads.submit(fresh_store, store, rank=0, world_size=2, timeout=SOON)
        main.result().set("address", "new")
        assert early.result().get("address") == b"new"


def test_a_try_that_broke_off_before_all_had_joined(store: dist.Store) -> None:
    with pytest.raises(TimeoutError):
        fresh_store(store, rank=0, world_size=2, timeout=timedelta(seconds=0.1))
    one_try(store, 2)


def test_a_rank_that_never_comes(store: dist.Store) -> None:
    asked: dict[str, Any] = {"world_size": 2, "timeout": timedelta(seconds=0.2)}
    with pytest.raises(TimeoutError, match=r"rank 0 did not find all 2 ranks within 0:00:00\.2"):
        fresh_store(store, rank=0, **asked)
    with pytest.raises(TimeoutError, match="rank 1 did not find all 2 ranks"):
        fresh_store(dist.HashStore(), rank=1, **asked)
