"""An LMDB folder open for reading: lazily, once per process, safe under fork and spawn.

LMDB allows one environment per file and process, and none across a fork. So all readers of a file share one, a forked
child opens its own, a pickled reader opens at its first use, and a reader that was only asked for its size holds nothing.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from weakref import WeakValueDictionary

import lmdb

from cn_clip.errors import DataError

REBUILD = "build it again with build_lmdb_dataset.py"

FileIdentity = tuple[int, int, int]
"""Device, inode and size: a store that was built anew differs."""


class _Environment:
    def __init__(self, folder: Path) -> None:
        self.pid = os.getpid()
        self.env = _open(folder)


_opened: WeakValueDictionary[FileIdentity, _Environment] = WeakValueDictionary()
_opening = threading.Lock()


def _renew_lock() -> None:
    global _opening
    _opening = threading.Lock()


if sys.platform != "win32":
    os.register_at_fork(after_in_child=_renew_lock)  # another thread may have held it when the child was made


class LmdbFolder:
    """Values by key of one LMDB folder; DataError when it is missing, damaged, or was built anew after this opened it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._identity = _identify(folder)
        self._environment: _Environment | None = None

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_environment": None}

    def get(self, key: bytes) -> bytes | None:
        try:
            with self._open().begin() as transaction:
                value: bytes | None = transaction.get(key)
                return value
        except lmdb.Error as error:
            raise DataError(f"{self.folder} is damaged ({_reason(error)}): {REBUILD}") from error

    def get_sized(self, key: bytes, num_bytes: int) -> bytes | None:
        """The value if it has this length, which is asked first: a damaged length may reach beyond the end of the file."""
        try:
            with self._open().begin(buffers=True) as transaction:
                value: memoryview | None = transaction.get(key)
                return bytes(value) if value is not None and len(value) == num_bytes else None
        except lmdb.Error as error:
            raise DataError(f"{self.folder} is damaged ({_reason(error)}): {REBUILD}") from error

    def walk_keys(self) -> Iterator[bytes]:
        """Every key in LMDB order: as byte strings, so `10` stands before `9`."""
        try:
            with self._open().begin() as transaction, transaction.cursor() as cursor:
                yield from cursor.iternext(keys=True, values=False)
        except lmdb.Error as error:
            raise DataError(f"{self.folder} is damaged ({_reason(error)}): {REBUILD}") from error

    def num_entries(self) -> int:
        return int(self._open().stat()["entries"])

    def close(self) -> None:
        """Let go of the file until the next use; other readers of it keep theirs."""
        self._environment = None

    def _open(self) -> lmdb.Environment:
        if self._environment is None or self._environment.pid != os.getpid():
            if _identify(self.folder) != self._identity:
                raise DataError(
                    f"{self.folder} was built anew while it was being read: start this command again"
                )
            self._environment = _share(self.folder, self._identity)
        return self._environment.env


def _share(folder: Path, identity: FileIdentity) -> _Environment:
    with _opening:
        environment = _opened.get(identity)
        if environment is not None and environment.pid != os.getpid():
            environment.env.close()  # inherited by fork: closes the child's copy only, and lets the file be opened here
            environment = None
        if environment is None:
            _opened[identity] = environment = _Environment(folder)
        return environment


def _identify(folder: Path) -> FileIdentity:
    try:
        file = (folder / "data.mdb").stat()
    except FileNotFoundError as error:
        raise DataError(f"{folder} was moved or deleted: {REBUILD}") from error
    except OSError as error:
        raise DataError(f"cannot read {folder}: {error.strerror}") from error
    return file.st_dev, file.st_ino, file.st_size


def _open(folder: Path) -> lmdb.Environment:
    try:
        env = lmdb.open(str(folder), readonly=True, create=False, lock=False, readahead=False, meminit=False)
    except lmdb.Error as error:
        raise DataError(
            f"{folder}/data.mdb is unreadable, empty, cut or no LMDB file ({_reason(error)}): {REBUILD}"
        ) from error
    needed_bytes = (env.info()["last_pgno"] + 1) * env.stat()["psize"]
    if (
        folder / "data.mdb"
    ).stat().st_size < needed_bytes:  # reading past the end of a mapped file kills the process
        env.close()
        raise DataError(
            f"{folder}/data.mdb is cut: it needs {needed_bytes:,} bytes; copy it whole or {REBUILD}"
        )
    return env


def _reason(error: lmdb.Error) -> str:
    return str(error).rpartition(": ")[2]
