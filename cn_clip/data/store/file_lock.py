"""A file that stands for work which only one process may do at a time."""

from __future__ import annotations

import errno
import os
import sys
import time
from contextlib import suppress
from pathlib import Path

_CANNOT = {errno.EINVAL, errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP}
"""What a file system without locks answers."""


class FileLock:
    """Held from `acquire` to `release`, or until the process ends, however it ends.

    The file is there only while somebody holds it, or was killed holding it. It must be a file that nothing moves:
    a lock is on the inode, so that on a folder which gets another name it guards the new name, and nobody the old one.
    A child that was forked meanwhile holds it too, until it ends.
    On Windows, and on file systems without locks, it is always to be had.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor: int | None = None
        self.is_held = False
        self._is_shared = False

    def acquire(self, *, shared: bool = False) -> bool:
        """False when another process, or another lock of this one, holds it; OSError when the file cannot be made.

        `shared`: others may hold it shared too.
        """
        if sys.platform != "win32":
            while self._descriptor is None:
                # for writing: network file systems want that for a lock of one's own
                descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o666)
                try:
                    if not _lock(descriptor, shared=shared):
                        return False
                    if _is_at(self._path, descriptor):
                        self._descriptor, descriptor = descriptor, -1
                    # else who held it has deleted it meanwhile, and a file that is not there guards nothing
                finally:
                    if descriptor >= 0:
                        os.close(descriptor)
        self.is_held, self._is_shared = True, shared
        return True

    def acquire_within(self, seconds: float, *, shared: bool = False) -> bool:
        """The same, but a holder that is about to end is waited for."""
        end = time.monotonic() + seconds
        while not self.acquire(shared=shared):
            if time.monotonic() >= end:
                return False
            time.sleep(0.1)
        return True

    def release(self) -> None:
        if self._descriptor is not None:
            # a file that others hold too has to stay, or the next one to come would lock another
            if not self._is_shared or _lock(self._descriptor):
                with suppress(OSError):  # one that stays behind is taken over by the next
                    self._path.unlink()  # before it is unlocked, or it could be another one's by then
            os.close(self._descriptor)
            self._descriptor = None
        self.is_held = False


def _lock(descriptor: int, *, shared: bool = False) -> bool:
    if sys.platform == "win32":
        return True
    import fcntl

    try:
        fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in _CANNOT:
            raise
    return True


def _is_at(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False
