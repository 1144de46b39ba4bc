"""A folder replaced in one step by a new one made beside it."""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
import sys
from pathlib import Path

from cn_clip.data.store import layout
from cn_clip.data.store.file_lock import FileLock
from cn_clip.errors import DataError

_CANNOT = {errno.EINVAL, errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP}
"""What a file system answers that cannot sync folders."""
_AT_FDCWD = -100  # Linux <fcntl.h>
_EXCHANGE = 2  # RENAME_EXCHANGE of Linux <linux/fs.h> and RENAME_SWAP of macOS <sys/stdio.h> are both 2


class Replacement:
    """`begin()` gives an empty hidden folder beside `target`, `commit()` puts it there, `discard()` clears it.

    Only a folder that holds nothing but a split is ever replaced. From `begin` to the end of `discard` no other process
    can begin: what one of them moves or deletes is never another one's.
    """

    def __init__(self, target: Path) -> None:
        self.target = target.resolve()  # through a link: the folder it names is what gets replaced
        self._building = self.target.with_name(f".{self.target.name}.building")
        self._old = self.target.with_name(f".{self.target.name}.old")
        self._lock = FileLock(self.target.with_name(f".{self.target.name}.lock"))

    @property
    def is_half_done(self) -> bool:
        """A kill between two renames left the folder under its hidden name; `begin` brings it back."""
        return self._old.exists() and not self.target.exists()

    def begin(self) -> Path:
        """The empty folder to build in; DataError when another build is under way or `target` is no split."""
        try:
            self.target.parent.mkdir(parents=True, exist_ok=True)
            if not self._lock.acquire():
                raise DataError(
                    f"{self.target} is being built by another process: wait for it, or end it and run again"
                )
            self._prepare()
        except OSError as error:
            self._lock.release()
            raise DataError(
                f"cannot write into {self.target.parent}: {error.strerror}; choose another folder"
            ) from error
        except BaseException:
            self._lock.release()
            raise
        return self._building

    def commit(self) -> None:
        """Make the new folder `target`, durably; what was there before is deleted by `discard`."""
        try:
            for folder in (*self._building.iterdir(), self._building):
                _sync_folder(folder)
            if not self.target.exists():
                self._building.rename(self.target)
            elif not _exchange(self._building, self.target):
                self.target.rename(self._old)  # a kill between these two lines is mended by `_restore`
                self._building.rename(self.target)
            _sync_folder(self.target.parent)
        except OSError as error:
            raise DataError(
                f"cannot put the new split at {self.target}: {error.strerror}; run again"
            ) from error

    def discard(self) -> None:
        """Delete what is not in place; safe to call after `commit` too."""
        if not self._lock.is_held:
            return
        try:
            self._restore()  # before deleting: half a commit leaves the old split only under its hidden name
            for folder in (self._building, self._old):
                # the next build clears what could not be deleted now
                shutil.rmtree(folder, ignore_errors=True)
        finally:
            self._lock.release()

    def _prepare(self) -> None:
        """Mend or clear what a killed build left, and make the folder to build in."""
        self._restore()
        self._refuse_foreign_target()
        for folder in (self._building, self._old):
            if folder.exists():
                shutil.rmtree(folder)
        self._building.mkdir()

    def _restore(self) -> None:
        if self.is_half_done:
            self._old.rename(self.target)

    def _refuse_foreign_target(self) -> None:
        if self.target.exists() and not self.target.is_dir():
            raise DataError(f"{self.target} is a file: give a folder for the split, or move the file away")
        if not self.target.is_dir():
            return
        foreign = sorted(
            child.name for child in self.target.iterdir() if not layout.is_folder_of_split(child.name)
        )
        if foreign:
            raise DataError(
                f"{self.target} holds {foreign[0]!r}, which is no part of a split and would be deleted: "
                "move it away or give another --lmdb_dir"
            )


def _exchange(first: Path, second: Path) -> bool:
    """Swap two folders in one step; False where the system or its file system cannot."""
    try:
        libc = ctypes.CDLL(None, use_errno=True)
        if sys.platform == "darwin":
            failed = libc.renamex_np(os.fsencode(first), os.fsencode(second), _EXCHANGE)
        else:
            failed = libc.renameat2(_AT_FDCWD, os.fsencode(first), _AT_FDCWD, os.fsencode(second), _EXCHANGE)
    except (AttributeError, TypeError, OSError):  # an older C library, or Windows
        return False
    return failed == 0


def _sync_folder(folder: Path) -> None:
    if sys.platform == "win32":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _CANNOT:  # some network file systems sync files only
            raise
    finally:
        os.close(descriptor)
