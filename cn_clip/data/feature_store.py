"""Features kept on disk, a row for each id: made once, mapped into memory by any number of processes.

A folder holds `ids.npy` (n,) int64, ascending, `features.npy` (n, E) float32, and `meta.json`, which is written last: a folder
without it is half done. Shapes: n rows, B of them, E embedding.
"""

from __future__ import annotations

import errno
import json
import os
import sys
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from numpy.lib.format import open_memmap
from numpy.typing import NDArray
from torch import Tensor

from cn_clip.errors import DataError
from cn_clip.files import write_atomically

VERSION = 1
IDS, FEATURES, META = "ids.npy", "features.npy", "meta.json"
Ids = NDArray[np.int64]
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@dataclass(frozen=True)
class FeatureStore:
    """Features by id. Picklable: each process maps the files anew."""

    path: Path
    fingerprint: str
    """Of whatever made them: other features have another."""
    dim: int

    def __len__(self) -> int:
        return len(self._ids)

    def read(self, one_id: int) -> Tensor:
        """(E,) of one id; DataError when there are none, or none that are numbers."""
        return self.of(torch.tensor([one_id]))[0]

    def of(self, ids_B: Tensor) -> Tensor:
        """(B, E), on the CPU; DataError as for one."""
        ids = ids_B.cpu().numpy()
        places = np.searchsorted(self._ids, ids).clip(max=max(len(self._ids) - 1, 0))
        missing = ids[self._ids[places] != ids] if len(self._ids) else ids
        if len(missing):
            raise DataError(
                f"{self.path} has no features of id {missing[0]}: delete the folder to make them anew"
            )
        features_BE = torch.from_numpy(self._features[places])
        unreadable = ~features_BE.isfinite().all(1).numpy()
        if unreadable.any():
            raise DataError(f"the picture {ids[unreadable][0]} could not be read when {self.path} was made")
        return features_BE

    def __getstate__(self) -> dict[str, object]:
        return {name: value for name, value in vars(self).items() if not name.startswith("_")}

    @cached_property
    def _ids(self) -> Ids:
        ids: Ids = np.load(self.path / IDS, mmap_mode="r", allow_pickle=False)
        return ids

    @cached_property
    def _features(self) -> NDArray[np.float32]:
        features: NDArray[np.float32] = np.load(self.path / FEATURES, mmap_mode="r", allow_pickle=False)
        return features


def is_feature_store(path: Path) -> bool:
    """Whether a folder is one, whole."""
    return (path / META).is_file() and (path / FEATURES).is_file()


def open_features(path: Path) -> FeatureStore:
    """DataError for a folder that is none, or a damaged one."""
    try:
        meta = json.loads((path / META).read_text(encoding="utf-8"))
        store = FeatureStore(path, str(meta["fingerprint"]), int(meta["dim"]))
        shapes = (store._ids.shape, store._features.shape)
        if meta["version"] != VERSION or shapes != ((meta["count"],), (meta["count"], store.dim)):
            raise ValueError(f"version {meta['version']}, shapes {shapes}")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{path} is no whole folder of features ({error}): delete it to make it anew, or give another"
        ) from error
    return store


class FeatureWriter:
    """Writes a folder of features; several processes may write rows of one that the first of them began."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._features = open_memmap(path / FEATURES, mode="r+")

    @classmethod
    def begin(cls, path: Path, ids_n: Ids, dim: int) -> FeatureWriter:
        """A folder for features of these ids, ascending; what stood there is gone. Rows that are never written are NaN."""
        assert bool((np.diff(ids_n) > 0).all()), "ids ascend"
        path.mkdir(parents=True, exist_ok=True)
        (path / META).unlink(missing_ok=True)
        write_atomically(path / IDS, lambda file: np.save(file, ids_n, allow_pickle=False))
        (path / FEATURES).unlink(missing_ok=True)  # not cut short: that kills a process which has it mapped
        features = open_memmap(path / FEATURES, mode="w+", dtype=np.float32, shape=(len(ids_n), dim))
        _reserve(path / FEATURES)
        features[:] = np.nan
        features.flush()
        return cls(path)

    def write(self, places: slice, features_BE: Tensor) -> None:
        """Rows `places` of the ids' order."""
        self._features[places] = features_BE.float().cpu().numpy()

    def flush(self) -> None:
        """Rows so far on disk."""
        self._features.flush()

    def finish(self, fingerprint: str) -> None:
        """Make the folder whole, when all processes have flushed."""
        count, dim = self._features.shape
        meta = {"version": VERSION, "fingerprint": fingerprint, "count": count, "dim": dim}
        write_atomically(self.path / META, json.dumps(meta).encode())


def _reserve(path: Path) -> None:
    """Room for the whole file, or an OSError: writing through memory into a full disk kills the process."""
    if sys.platform != "linux":
        return
    with path.open("r+b") as file:
        try:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
        except OSError as error:
            if error.errno in _NO_ROOM:  # else a file system that cannot reserve
                raise OSError(error.errno, os.strerror(error.errno), str(path)) from error
