"""Results of threads: in order, some ahead, and over when nobody asks any more."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest

from cn_clip.preprocess.splits.in_order import in_order


@pytest.mark.parametrize("num_threads", [0, 1, 2, 5])
def test_results_keep_the_order(num_threads: int) -> None:
    def work(number: int) -> int:
        time.sleep(0.002 * (number % 3))
        return number * number

    assert list(in_order(work, range(40), num_threads)) == [number * number for number in range(40)]


def test_no_more_is_read_than_the_threads_need() -> None:
    num_read = 0

    def pieces() -> Iterator[int]:
        nonlocal num_read
        for number in range(1000):
            num_read += 1
            yield number

    results = in_order(str, pieces(), 3)
    assert next(results) == "0"
    assert num_read <= 3 + 3
    results.close()


def test_an_error_comes_in_its_place() -> None:
    results = in_order(lambda number: 10 // number, [5, 2, 0, 1], 2)
    assert [next(results), next(results)] == [2, 5]
    with pytest.raises(ZeroDivisionError):
        next(results)


def test_who_stops_early_leaves_no_thread() -> None:
    results = in_order(lambda number: number, iter(range(10**9)), 4)
    assert next(results) == 0
    results.close()
    assert [thread.name for thread in threading.enumerate() if thread.name.startswith("check")] == []
