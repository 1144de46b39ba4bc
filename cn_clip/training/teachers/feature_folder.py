"""Features that a teacher has given before, by picture id: a folder of ours, or a `.jsonl` of `cn-clip extract`."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from cn_clip.data.batches import PairBatch
from cn_clip.data.feature_store import FeatureStore, FeatureWriter, is_feature_store, open_features
from cn_clip.data.store.file_lock import FileLock
from cn_clip.errors import DataError
from cn_clip.training.teachers import Taught, Teacher

SECONDS_TO_CONVERT = 600.0
"""What a run that makes the folder may take while another waits for it."""


def open_teacher(setting: str, device: torch.device, *, writes: bool = True) -> Teacher:
    """`writes`: a `.jsonl` may be converted beside itself; else such a teacher tells its width, and can be asked nothing."""
    path = Path(setting)
    return FeatureTeacher(_converted(path, writes=writes) if path.suffix == ".jsonl" else open_features(path))


class FeatureTeacher:
    """Knows pictures by their ids; needs none of them."""

    knows_captions = needs_pictures = False

    def __init__(self, store: FeatureStore) -> None:
        self._store, self.width = store, store.dim

    def __call__(self, batch: PairBatch, *, captions: bool) -> Taught:
        image_BF = self._store.of(batch.image_ids_B.cpu()).to(batch.image_ids_B.device)
        return Taught(F.normalize(image_BF, dim=-1))


def _converted(path: Path, *, writes: bool) -> FeatureStore:
    """The features of a JSONL in a folder beside it, made again when the file changed."""
    folder = path.with_suffix(".features")
    status = path.stat()
    fingerprint = f"{status.st_size} {status.st_mtime_ns}"
    if store := _there(folder, fingerprint):
        return store
    if not writes:
        return FeatureStore(folder, fingerprint, _read(path)[1].shape[1])  # as it will be
    lock = FileLock(path.with_suffix(".features.lock"))
    if not lock.acquire_within(SECONDS_TO_CONVERT):
        raise DataError(
            f"another run is still making {folder}: start again when it has, or give each run a file of its own"
        )
    try:
        # who held it may have made them
        return _there(folder, fingerprint) or _made(path, folder, fingerprint)
    finally:
        lock.release()


def _there(folder: Path, fingerprint: str) -> FeatureStore | None:
    """The features in the folder, if they are those."""
    if not is_feature_store(folder):
        return None
    store = open_features(folder)
    return store if store.fingerprint == fingerprint else None


def _made(path: Path, folder: Path, fingerprint: str) -> FeatureStore:
    ids_n, features_nE = _read(path)
    writer = FeatureWriter.begin(folder, ids_n, features_nE.shape[1])
    writer.write(slice(0, len(ids_n)), torch.from_numpy(features_nE))
    writer.flush()
    writer.finish(fingerprint)
    return open_features(folder)


def _read(path: Path) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """(n,) ids that ascend, and (n, E) features, of a JSONL."""
    rows = sorted(_rows(path), key=lambda row: row[0])
    ids = np.array([one_id for one_id, _ in rows], np.int64)
    if len(np.unique(ids)) != len(ids) or not len(ids):
        raise DataError(f"{path} has no rows, or an image_id twice: extract the features again")
    return ids, np.stack([feature for _, feature in rows])


def _rows(path: Path) -> list[tuple[int, np.ndarray]]:
    found = []
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            try:
                row = json.loads(line)
                found.append((int(row["image_id"]), np.array(row["feature"], np.float32)))
            except (ValueError, KeyError, TypeError) as error:
                raise DataError(
                    f'{path}, row {number}: {error}; rows are {{"image_id": 3, "feature": [0.1, ...]}}, as extract writes them'
                ) from error
    return found
