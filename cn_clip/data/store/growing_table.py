"""An LMDB folder being written: its map grows with what is in it, and what is in it is durable when finished."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import lmdb

from cn_clip.errors import DataError

_BATCH_BYTES = 8 << 20  # of values in one transaction: LMDB holds them in memory until it ends
_BATCH_ROWS = 1024
# a look-up counts as so many rows, since the parts of the file that it maps count as memory of this process
_LOOKUP_ROWS = 4
_FIRST_MAP_BYTES = 64 << 20
_GROWTH = 1.5
_PAGE_HEADER_BYTES = 16
_KEPT_BYTES = 16 << 20


class GrowingTable:
    """New LMDB folder, or one that gets more rows; nobody else may have it open."""

    def __init__(self, folder: Path) -> None:
        self.num_bytes = 0
        """Put so far, in whole pages where a value has its own."""
        self._folder = folder
        self._transaction: lmdb.Transaction | None = None
        with self._reporting():
            # sync=False: the folder is not looked at before `finish` made it durable. lock=False: it lies in a folder
            # that `Replacement` has locked. Memory is initialised, or bytes of this process would end up in the file.
            self._env = lmdb.open(str(folder), map_size=_FIRST_MAP_BYTES, sync=False, lock=False)
            self._page_bytes = int(self._env.stat()["psize"])

    def put(self, key: bytes, value: bytes) -> None:
        """Keep a value, in the place of the one that this key had."""
        cost = self._own_pages_bytes(value)
        try:  # not the context manager of the others: this is called for every row
            self._writing(cost).put(key, value)
        except (lmdb.Error, OSError) as error:
            raise write_error(self._folder, error) from error
        self._room_bytes -= cost
        self._room_rows -= 1
        self.num_bytes += cost or len(value)

    def get(self, key: bytes) -> bytes | None:
        """What stands under this key, written a moment ago or long before."""
        try:
            value = self._writing(0).get(key)
            self._room_rows -= _LOOKUP_ROWS
        except (lmdb.Error, OSError) as error:
            raise write_error(self._folder, error) from error
        return None if value is None else bytes(value)

    def finish(self) -> None:
        """Everything written and on the disk."""
        with self._reporting():
            self._commit()
            self._env.sync(True)
        self.close()

    def close(self) -> None:
        if self._transaction is not None:
            self._transaction.abort()
            self._transaction = None
        self._env.close()

    def _own_pages_bytes(self, value: bytes) -> int:
        """Bytes of the pages that hold this value alone; 0 when it shares a page with others."""
        if len(value) < self._page_bytes // 2:
            return 0
        num_pages = -(-(len(value) + _PAGE_HEADER_BYTES) // self._page_bytes)
        return num_pages * self._page_bytes

    def _writing(self, num_bytes: int) -> lmdb.Transaction:
        """A transaction with room for one more row of this size."""
        if self._transaction is None:
            return self._begin(num_bytes)
        if self._room_rows <= 0 or self._room_bytes < num_bytes:
            self._commit()
            return self._begin(num_bytes)
        return self._transaction

    def _begin(self, num_bytes: int) -> lmdb.Transaction:
        """A new transaction that cannot run out of map, since what a full one leaves behind would be lost."""
        self._room_bytes, self._room_rows = max(_BATCH_BYTES, num_bytes), _BATCH_ROWS
        # a row copies the pages on its way down the tree, and may split each of them
        pages_of_a_row = 2 * (self._env.stat()["depth"] + 2)
        needed_pages = self._env.info()["last_pgno"] + 1 + pages_of_a_row * _BATCH_ROWS
        needed_bytes = needed_pages * self._page_bytes + self._room_bytes
        map_bytes = self._env.info()["map_size"]
        if map_bytes < needed_bytes:
            map_bytes = max(needed_bytes, int(map_bytes * _GROWTH))
        # always, since it maps the file anew: pages that were looked at would go on counting as memory of this process
        self._env.set_mapsize(map_bytes)
        self._transaction = self._env.begin(write=True)
        return self._transaction

    def _commit(self) -> None:
        if self._transaction is not None:
            transaction, self._transaction = self._transaction, None
            transaction.commit()

    @contextmanager
    def _reporting(self) -> Iterator[None]:
        try:
            yield
        except (lmdb.Error, OSError) as error:
            raise write_error(self._folder, error) from error


def keep_freed_memory() -> None:
    """Let a transaction use what the one before freed: by default, glibc gives it to the system and gets it back page by page.

    The size from which it does so follows the largest block that was freed (mallopt(3), M_MMAP_THRESHOLD). It saves a tenth
    of the time of a build, and is called when the tables are open, because LMDB's own lists are better not in that memory.
    """
    bytes(_KEPT_BYTES)


def write_error(folder: Path, error: Exception) -> DataError:
    """What to say when a folder of the new split cannot be written."""
    return DataError(
        f"cannot write {folder} ({_reason(folder, error)}): free some space or choose another folder, and run the same "
        "command again; what was there before is untouched"
    )


def _reason(folder: Path, error: Exception) -> str:
    # LMDB calls a write that the disk took only in part an input/output error
    if shutil.disk_usage(folder.parent).free < _BATCH_BYTES:
        return "the disk is full"
    return str(error).rpartition(": ")[2] if isinstance(error, lmdb.Error) else str(error)
