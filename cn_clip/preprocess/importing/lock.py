"""One import at a time in a folder."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cn_clip.data.store.file_lock import FileLock
from cn_clip.errors import DataError

LOCK_FILE = ".importing.lock"


@contextmanager
def hold_folder(folder: Path) -> Iterator[None]:
    """Nobody else is inside for this folder meanwhile; DataError when somebody is.

    The lock lies beside what it guards, so that its holder can delete that before it lets go.
    """
    lock = FileLock(folder / LOCK_FILE)
    try:
        is_ours = lock.acquire()
    except OSError as error:
        raise DataError(f"cannot write into --output-dir {folder}: {error.strerror}") from error
    if not is_ours:
        raise DataError(f"another import writes into {folder}: wait for it, or end it and run again")
    try:
        yield
    finally:
        lock.release()
