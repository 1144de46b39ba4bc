"""An LMDB folder being written: in batches, growing as it fills, durable when finished."""

from __future__ import annotations

import shutil
from pathlib import Path

import lmdb

from cn_clip.errors import DataError

_BATCH_BYTES = 8 << 20  # held in memory, and written again when the map turns out too small for them
_BATCH_ROWS = 10_000
_FIRST_MAP_BYTES = 64 << 20
_GROWTH = 1.5


class GrowingTable:
    """New LMDB folder; a key may come twice only with the same value."""

    def __init__(self, folder: Path) -> None:
        self.num_repeats = 0
        self._folder = folder
        self._batch: list[tuple[bytes, bytes, str]] = []
        self._batch_bytes = 0
        try:
            # sync=False: the folder is not looked at before `finish` made it durable
            self._env = lmdb.open(str(folder), map_size=_FIRST_MAP_BYTES, sync=False, meminit=False)
        except (lmdb.Error, OSError) as error:
            raise _write_error(folder, error) from error

    def put(self, key: bytes, value: bytes, source: str) -> None:
        """Keep a value; a DataError beginning with `source` follows if the key has another one."""
        self._batch.append((key, value, source))
        self._batch_bytes += len(value)
        if self._batch_bytes >= _BATCH_BYTES or len(self._batch) >= _BATCH_ROWS:
            self.flush()

    def flush(self) -> None:
        """Write what is held, with a larger map whenever this one is full."""
        while self._batch:
            try:
                self.num_repeats += self._write_batch()
            except lmdb.MapFullError:
                self._env.set_mapsize(int(self._env.info()["map_size"] * _GROWTH) + self._batch_bytes)
            except (lmdb.Error, OSError) as error:
                raise _write_error(self._folder, error) from error
            else:
                self._batch, self._batch_bytes = [], 0

    def finish(self) -> None:
        """Everything written and on the disk."""
        self.flush()
        try:
            self._env.sync(True)
        except (lmdb.Error, OSError) as error:
            raise _write_error(self._folder, error) from error
        self.close()

    def close(self) -> None:
        self._env.close()
        (self._folder / "lock.mdb").unlink(missing_ok=True)  # readers do not lock a finished store

    def _write_batch(self) -> int:
        """Number of repeated values; nothing of the batch is kept when this raises."""
        num_repeats = 0
        with self._env.begin(write=True) as transaction:
            for key, value, source in self._batch:
                if not transaction.put(key, value, overwrite=False):
                    if transaction.get(key) != value:
                        raise DataError(
                            f"{source}: id {key.decode()} was given before with other content; "
                            "give every picture an id of its own"
                        )
                    num_repeats += 1
        return num_repeats


def _write_error(folder: Path, error: Exception) -> DataError:
    return DataError(
        f"cannot write {folder} ({_reason(folder, error)}): free some space or choose another folder, and run the same "
        "command again; what was there before is untouched"
    )


def _reason(folder: Path, error: Exception) -> str:
    # LMDB calls a write that the disk took only in part an input/output error
    if shutil.disk_usage(folder.parent).free < _BATCH_BYTES:
        return "the disk is full"
    return str(error).rpartition(": ")[2] if isinstance(error, lmdb.Error) else str(error)
