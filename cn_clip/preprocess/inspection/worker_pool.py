"""A function called on stretch after stretch in worker processes, with a bar."""

from __future__ import annotations

import signal
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from functools import partial
from itertools import islice
from typing import NoReturn, Protocol, TypeVar

from tqdm import tqdm

from cn_clip.errors import DataError
from cn_clip.preprocess.inspection.sources import Stretch

_AHEAD = 4  # stretches per worker that may wait to be taken in
Rows = TypeVar("Rows")
Argument = TypeVar("Argument")


class Run(Protocol):
    """Calls a function on each stretch in the workers; results come in the order of the stretches."""

    def __call__(
        self, look: Callable[[Stretch], Rows], stretches: Sequence[Stretch], title: str, unit: str
    ) -> Iterator[Rows]: ...


@contextmanager
def open_pool(workers: int, begin: Callable[[Argument], None], argument: Argument) -> Iterator[Run]:
    """So many processes, each begun with `begin(argument)`; with one, this process does the work."""
    if workers < 2:
        begin(argument)
        yield _run_here
        return
    with ProcessPoolExecutor(workers, initializer=_begin_worker, initargs=(begin, argument)) as executor:
        try:
            yield partial(_run_in_pool, executor, workers)
        finally:
            executor.shutdown(cancel_futures=True)


def _begin_worker(begin: Callable[[Argument], None], argument: Argument) -> None:
    # Ctrl-C is the parent's to answer
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    begin(argument)


def _bar(stretches: Sequence[Stretch], title: str, unit: str) -> tqdm[NoReturn]:
    total = sum(stretch.weight for stretch in stretches)
    # disable=None: only on a terminal
    return tqdm(total=total, desc=title, unit=unit, unit_scale=True, disable=None)


def _run_here(
    look: Callable[[Stretch], Rows], stretches: Sequence[Stretch], title: str, unit: str
) -> Iterator[Rows]:
    with _bar(stretches, title, unit) as bar:
        for stretch in stretches:
            yield look(stretch)
            bar.update(stretch.weight)


def _run_in_pool(
    executor: ProcessPoolExecutor,
    workers: int,
    look: Callable[[Stretch], Rows],
    stretches: Sequence[Stretch],
    title: str,
    unit: str,
) -> Iterator[Rows]:
    waiting: deque[tuple[Stretch, Future[Rows]]] = deque()
    ahead = iter(stretches)
    with _bar(stretches, title, unit) as bar:
        try:
            # a few at a time, so that results never pile up
            for stretch in islice(ahead, _AHEAD * workers):
                waiting.append((stretch, executor.submit(look, stretch)))
            while waiting:
                done, future = waiting.popleft()
                yield future.result()
                bar.update(done.weight)
                for stretch in islice(ahead, 1):
                    waiting.append((stretch, executor.submit(look, stretch)))
        except BrokenProcessPool as error:
            raise DataError(
                f"a worker process ended while it read the {title} (out of memory, or killed): "
                "run again with fewer --workers"
            ) from error
