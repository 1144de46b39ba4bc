"""One import at a time in a folder: a lock that outlives no process, and that is gone when nobody holds it."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cn_clip.errors import DataError

LOCK_FILE = ".importing.lock"
_CANNOT = {errno.EINVAL, errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP}
"""What a file system without locks answers."""


@contextmanager
def hold_folder(folder: Path) -> Iterator[None]:
    """Nobody else is inside for this folder meanwhile; DataError when somebody is.

    The lock lies beside what it guards, so that its holder can delete that before it lets go.
    """
    path = folder / LOCK_FILE
    descriptor = _lock(path, folder)
    try:
        yield
    finally:
        if descriptor is not None:
            # while it is held: whoever opened it before sees, after locking, that it is no longer there
            path.unlink(missing_ok=True)
            os.close(descriptor)


def _lock(path: Path, folder: Path) -> int | None:
    """Descriptor that holds the lock until it is closed or the process ends; None where there are no locks."""
    if sys.platform == "win32":
        # nor can the files be deleted there that another import has open
        return None
    import fcntl

    while True:
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            raise DataError(f"cannot write into --output-dir {folder}: {error.strerror}") from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_at(path, descriptor):
                return descriptor
        except BlockingIOError as error:
            os.close(descriptor)
            raise DataError(
                f"another import writes into {folder}: wait for it, or end it and run again"
            ) from error
        except OSError as error:
            if error.errno in _CANNOT:  # the file of the progress has a lock of its own
                path.unlink(missing_ok=True)
                os.close(descriptor)
                return None
            os.close(descriptor)
            raise
        os.close(descriptor)


def _is_at(path: Path, descriptor: int) -> bool:
    """Whether the locked file is the one that others would open."""
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False
