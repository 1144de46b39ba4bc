"""Work done by threads, its results in the order of what was given.

Threads and not processes: checking a picture is mostly decoding, which runs outside Python's lock, and what they return
needs no copying. A killed build leaves no process behind.
"""

from __future__ import annotations

import os
import sys
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Piece = TypeVar("Piece")
Result = TypeVar("Result")

_LOOK_AHEAD = 2  # pieces of work beyond one per thread: enough that none waits for the next piece to be read


def num_cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def in_order(
    work: Callable[[Piece], Result], pieces: Iterable[Piece], num_threads: int
) -> Generator[Result, None, None]:
    """`map(work, pieces)`, some pieces ahead of who asks; without threads for 0 or 1 of them."""
    if num_threads <= 1:
        yield from map(work, pieces)
        return
    with ThreadPoolExecutor(num_threads, thread_name_prefix="check") as threads:
        waiting: deque[Future[Result]] = deque()
        try:
            for piece in pieces:
                waiting.append(threads.submit(work, piece))
                if len(waiting) > num_threads + _LOOK_AHEAD:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            # who asks may stop early: what has not begun need not begin
            for future in waiting:
                future.cancel()
