"""The folder of a run: its names, its log, and what was asked of it.

logs_dir/name/out_{UTC time}.log, params_{UTC time}.txt, resolved.yaml, metrics.jsonl, suspects.jsonl, checkpoints/
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import yaml

from cn_clip.data.store.file_lock import FileLock
from cn_clip.errors import CnClipError, DataError, Preempted
from cn_clip.files import write_atomically
from cn_clip.parallel.gather import from_main
from cn_clip.parallel.ranks import Ranks

LINE = "%(asctime)s | %(levelname)s | Rank {rank} | %(message)s"
TIME = "%Y-%m-%d,%H:%M:%S"  # people parse these lines: the form is cn-clip's
LOCK = ".running.lock"
SECONDS_TO_END = 10.0
"""What a run that was killed may need until the last of its processes is gone."""
METRICS, SUSPECTS, RESOLVED = "metrics.jsonl", "suspects.jsonl", "resolved.yaml"


class RunDir:
    """Paths of one run; folders are made by the main rank only."""

    def __init__(self, logs_dir: str, name: str, *, writes: bool) -> None:
        self.path = Path(logs_dir) / name
        self.checkpoints = self.path / "checkpoints"
        self.writes = writes
        """Whether this rank writes at all."""
        self._started = time.strftime("%Y-%m-%d-%H-%M-%S", time.gmtime())
        if writes:
            self._make()

    def _make(self) -> None:
        try:
            self.checkpoints.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DataError(
                f"cannot make the run folder {self.path} ({error.strerror}): set run.logs_dir (--logs) to a folder "
                "that can be written"
            ) from error

    @property
    def latest_checkpoint(self) -> Path:
        """The newest of the whole file and the folder of shards; which of both a run writes may have changed."""
        whole, sharded = self.checkpoints / "epoch_latest.pt", self.checkpoints / "epoch_latest.sharded"
        there = [path for path in (whole, sharded) if path.exists()]
        return max(there, key=lambda path: path.stat().st_mtime, default=whole)

    @property
    def metrics(self) -> Path:
        return self.path / METRICS

    @property
    def suspects(self) -> Path:
        return self.path / SUSPECTS

    @property
    def resolved(self) -> Path:
        return self.path / RESOLVED

    @property
    def log(self) -> Path:
        return self.path / f"out_{self._started}.log"

    def write_settings(self, resolved: Mapping[str, Any], flags: Mapping[str, Any]) -> None:
        """`resolved.yaml` repeats the run; `params_*.txt` lists the reference's flags as `name: value` lines."""
        if not self.writes:
            return
        text = yaml.safe_dump(dict(resolved), sort_keys=False, allow_unicode=True)
        write_atomically(self.resolved, text.encode())
        lines = "".join(f"{name}: {flags[name]}\n" for name in sorted(flags))
        write_atomically(self.path / f"params_{self._started}.txt", lines.encode())


@contextmanager
def alone_in(run_dir: RunDir, ranks: Ranks) -> Iterator[None]:
    """No other run writes into the folder meanwhile; DataError on all ranks when one does. Collective."""
    lock = FileLock(run_dir.path / LOCK)
    try:
        refusal = from_main(_refusal(lock, run_dir.path) if run_dir.writes else None, ranks)
        if refusal is not None:
            raise DataError(refusal)
        yield
    finally:
        lock.release()


def _refusal(lock: FileLock, folder: Path) -> str | None:
    try:
        if lock.acquire_within(SECONDS_TO_END):
            return None
    except OSError as error:
        return f"cannot write into the run folder {folder} ({error.strerror}): give the right to, or another run.name (--name)"
    return f"another run writes into {folder}: wait for it, end it, or give this one a name of its own (run.name, --name)"


class _LogFile(logging.FileHandler):
    """A disk that is full takes no lines; they are on stderr, and what the run itself cannot write ends it."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802  # logging's name
        if not isinstance(sys.exc_info()[1], OSError):
            super().handleError(record)

    def close(self) -> None:
        with suppress(OSError):  # the same lines once more
            super().close()


@contextmanager
def logging_to(run_dir: RunDir, ranks: Ranks, *, debug: bool) -> Iterator[None]:
    """Log lines of this process on stderr, and in the run's log when this rank writes, with what ends the run last."""
    root, level = logging.getLogger(), logging.DEBUG if debug else logging.INFO
    formatter = logging.Formatter(LINE.format(rank=ranks.rank), datefmt=TIME)
    handlers: list[logging.Handler] = [logging.StreamHandler(sys.stderr)]
    if run_dir.writes:
        handlers.append(_LogFile(run_dir.log, encoding="utf-8"))
    previous_level = root.level
    for handler in handlers:
        handler.setFormatter(formatter)
        root.addHandler(handler)
    root.setLevel(level)
    for chatty in (
        "PIL",
        "matplotlib",
        "urllib3",
        "filelock",
    ):  # their DEBUG and INFO lines are not about this run
        logging.getLogger(chatty).setLevel(logging.WARNING)
    try:
        yield
    except Exception as error:
        for handler in handlers[1:]:  # on stderr the door says it, or Python
            handler.handle(_last_word(error))
        raise
    finally:
        root.setLevel(previous_level)
        for handler in handlers:
            root.removeHandler(handler)
            handler.close()


def _last_word(error: Exception) -> logging.LogRecord:
    """What ended the run, with the stack where it is our mistake."""
    level = logging.INFO if isinstance(error, Preempted) else logging.ERROR
    stack = None if isinstance(error, CnClipError) else (type(error), error, error.__traceback__)
    return logging.LogRecord(__name__, level, __file__, 0, str(error), None, stack)
