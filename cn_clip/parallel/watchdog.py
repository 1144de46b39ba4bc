"""Ranks that wait for one another in vain: who is missing is said in one sentence, and the process ends.

Each rank notes what it does. A thread of its own counts beats beside the note in the store the ranks met at, for as long as
the process runs at all. When a collective fails, or nothing was noted for too long, the others' beats are looked at twice:
a rank whose count stands still is gone or stopped, one that is behind in its notes is the one that is waited for.
"""

from __future__ import annotations

import faulthandler
import json
import logging
import os
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import TypeVar

import torch.distributed as dist

from cn_clip.errors import EXIT_LOST_RANK, CnClipError, LostRankError, Preempted
from cn_clip.parallel.ranks import Ranks

logger = logging.getLogger(__name__)

Item = TypeVar("Item")

GLOO_FAILURES = (
    "Connection closed by peer",
    "Connection reset by peer",
    "Timed out waiting",
    "Broken pipe",
    "gloo/transport",
)
"""What gloo says when another rank does not answer; it has no class of errors of its own."""

FAREWELL_SECONDS = 60.0
"""How long a process that lost a rank may take to end by itself."""

BEATS_TO_JUDGE = 3
"""Beats between the two looks at the others."""


LOST = "it lost another rank"
"""The end of a rank that is not the cause."""


@dataclass(frozen=True)
class Note:
    """What one rank does."""

    step: int = 0
    doing: str = "starting"
    beats: int = 0
    ended: str | None = None
    """Why it has ended, where it could still say so; empty when all went well."""

    def __str__(self) -> str:
        return f"at step {self.step}, {self.doing}"


class Watchdog:
    """Watches over one rank while its context is open; one process alone waits for nobody."""

    def __init__(
        self, ranks: Ranks, timeout: timedelta, *, log: Path | None = None, beat_seconds: float | None = None
    ) -> None:
        """
        timeout: without a note for so long, the process ends.
        log: file that the stacks are written to as well.
        """
        self._ranks, self._timeout, self._log = ranks, timeout.total_seconds(), log
        # as many a second as one store answers easily
        self._beat = beat_seconds or max(min(1.0, self._timeout / 10), ranks.world_size / 500)
        self._note, self._noted = Note(), time.monotonic()
        self._store: dist.Store | None = None
        self._over = threading.Event()
        self._telling = threading.Lock()
        """Held by the thread that tells the others something: a failed collective, the timeout and a beat may come at the same
        time, and after the end nothing may be told any more."""

    def __enter__(self) -> Watchdog:
        if self._ranks.world_size > 1:
            self._store = _own_connection()
            self._publish()
            threading.Thread(target=self._watch, name="watchdog", daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._ranks.world_size == 1:
            return
        if isinstance(error, Exception) and is_lost_rank(error):
            with self._telling:
                self._over.set()
                # leaving the others may hang as well
                faulthandler.dump_traceback_later(FAREWELL_SECONDS, exit=True)
                raise LostRankError(self._lost()) from error
        with self._telling:
            self._over.set()
            faulthandler.cancel_dump_traceback_later()
            self._publish(ended="" if error is None else _sentence(error))

    def note(self, step: int, doing: str) -> None:
        """This rank goes on: it is at `step`, `doing` something, as in "reading its pairs"."""
        self._note, self._noted = Note(step, doing, self._note.beats), time.monotonic()

    def watched(self, items: Iterable[Item]) -> Iterator[Item]:
        """The items, each one a sign of life."""
        for item in items:
            self._noted = time.monotonic()
            yield item

    def _watch(self) -> None:
        while not self._over.wait(self._beat):
            with self._telling:
                if self._over.is_set():
                    return
                self._publish()
                # Python's threads stand still where a call in C holds the interpreter; this one does not
                faulthandler.dump_traceback_later(self._timeout + FAREWELL_SECONDS, exit=True)
                if time.monotonic() - self._noted > self._timeout:
                    self._end()

    def _publish(self, ended: str | None = None) -> None:
        note = self._note
        self._note = note = Note(note.step, note.doing, note.beats + 1, ended)
        if self._store is not None:
            try:
                self._store.set(_key(self._ranks.rank), json.dumps(asdict(note)))
            except (
                dist.DistError,
                RuntimeError,
            ) as error:  # its machine is gone: then the collectives fail too
                logger.debug("No beat: %s", error)

    def _end(self) -> None:
        """End a process whose main thread is stuck."""
        sentence = (
            f"rank {self._ranks.rank} made no progress for {timedelta(seconds=round(self._timeout))} h "
            f"(parallel.timeout_minutes), {self._note}: "
            f"{self._others()}. The stacks of this rank follow; {_WAY_ON}"
        )
        # not by the log first: the main thread may be stuck in it
        sys.stderr.write(f"error: {sentence}\n")
        _dump_stacks(sentence, self._log)
        self._publish(ended=LOST)
        os._exit(EXIT_LOST_RANK)

    def _lost(self) -> str:
        sentence = f"rank {self._ranks.rank} lost another rank {self._note}: {self._others()}; {_WAY_ON}"
        self._publish(ended=LOST)
        return sentence

    def _others(self) -> str:
        """What is known of the other ranks, after some beats."""
        before = self._look()
        for _ in range(BEATS_TO_JUDGE):
            time.sleep(self._beat)
            self._publish()
        return describe(before, self._look())

    def _look(self) -> dict[int, Note]:
        """The others' notes, of those that can be read."""
        found = {}
        for rank in range(self._ranks.world_size):
            try:
                if self._store is not None and rank != self._ranks.rank and self._store.check([_key(rank)]):
                    found[rank] = Note(**json.loads(self._store.get(_key(rank))))
            except (dist.DistError, RuntimeError) as error:
                logger.debug("No note of rank %d: %s", rank, error)
                self._store = None
        return found


def describe(before: dict[int, Note], after: dict[int, Note]) -> str:
    """Who is to be looked at, from two looks at the notes of all others."""
    if not after:
        return "the store that the ranks met at does not answer either, so look at the first machine"
    ended = [
        f"rank {rank} ended {note}: {note.ended}"
        for rank, note in after.items()
        if note.ended and not _echoes(note)
    ]
    silent = [
        f"rank {rank} does not answer any more, last seen {note}: it was killed or stopped, or its machine is gone"
        for rank, note in after.items()
        if note.ended is None and rank in before and before[rank].beats == note.beats
    ]
    if ended or silent:
        return _some([*ended, *silent])
    steps = {note.step for note in after.values()}
    behind = [
        f"rank {rank} is {note}"
        for rank, note in after.items()
        if note.ended is None and note.step == min(steps)
    ]
    return "all other ranks are alive; " + (
        _some(behind) if behind else "they have ended for the same reason"
    )


def _echoes(note: Note) -> bool:
    """Whether a rank ended only since another was missing."""
    return note.ended == LOST


def _some(said: list[str], shown: int = 3) -> str:
    return "; ".join(said[:shown]) + (f"; and {len(said) - shown} more" if len(said) > shown else "")


def is_lost_rank(error: BaseException) -> bool:
    """Whether a collective failed since another rank does not answer."""
    if isinstance(error, CnClipError):
        return False
    if isinstance(error, dist.DistError):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in GLOO_FAILURES)


_WAY_ON = "when that is mended, the same command goes on from the latest checkpoint"


def _sentence(error: BaseException) -> str:
    if isinstance(error, Preempted):
        return "it was asked to stop"
    return f"{type(error).__name__}: {error}".split("\n")[0]


def _key(rank: int) -> str:
    # a run that torchrun starts again finds the notes of the one before
    return f"cn_clip/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}/{rank}"


def _own_connection() -> dist.Store:
    """To the store of the process group; of its own, for a thread must not wait where another is waiting."""
    return dist.TCPStore(
        os.environ["MASTER_ADDR"],
        int(os.environ["MASTER_PORT"]),
        is_master=False,
        wait_for_workers=False,
        timeout=timedelta(seconds=10),
    )


def _dump_stacks(sentence: str, log: Path | None) -> None:
    faulthandler.dump_traceback(file=sys.stderr)
    sys.stderr.flush()
    if log is not None:
        with log.open("a", encoding="utf-8") as file:
            file.write(f"{sentence}\n")
            file.flush()
            faulthandler.dump_traceback(file=file)
