"""Features of a frozen image tower, computed once for all epochs and kept on disk (locked-image tuning, arXiv:2111.07991).

A step then needs neither the pictures nor the tower. Exact: what is kept is what the tower would have said in the run's number
types, which asks for pictures that look the same each time and for no masked patches.

Shapes: n distinct pictures, B of a batch, E embedding.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from xxhash import xxh3_128

from cn_clip.clip.model import CLIP
from cn_clip.config.schema import TrainConfig
from cn_clip.data.feature_store import FeatureStore, FeatureWriter, is_feature_store, open_features
from cn_clip.data.pairs import PairSource, PairStream
from cn_clip.data.store.file_lock import FileLock
from cn_clip.errors import ConfigError, DataError, Preempted
from cn_clip.parallel.engines import Engine
from cn_clip.parallel.gather import any_rank, from_main
from cn_clip.parallel.ranks import Ranks
from cn_clip.parallel.watchdog import Watchdog
from cn_clip.training.run_dir import SECONDS_TO_END, RunDir
from cn_clip.training.stop_signals import StopSignals
from cn_clip.training.training_data import TrainingData

logger = logging.getLogger(__name__)

LOCK = ".features.lock"


def check_feature_cache(config: TrainConfig) -> None:
    """ConfigError where `data.feature_cache` would not give what the tower gives."""
    if config.data.feature_cache is None:
        return
    wrong = {
        "model.freeze_image is off": not config.model.freeze_image,
        "lora.image_rank is set": config.lora.image_rank > 0,
        f"data.augment is {config.data.augment.type}": config.data.augment.type != "none",
        f"model.mask_ratio is {config.model.mask_ratio}": config.model.mask_ratio > 0,
        f"data.train.type is {config.data.train.type if config.data.train else None}": (
            config.data.train is not None and config.data.train.type != "lmdb_pairs"
        ),
    }
    for reason, is_wrong in wrong.items():
        if is_wrong:
            raise ConfigError(
                f"data.feature_cache keeps what a frozen image tower says of the pictures of one LMDB, but {reason}: "
                "set it otherwise, or leave data.feature_cache out"
            )


@contextmanager
def cached_features(
    config: TrainConfig,
    engine: Engine[CLIP],
    data: TrainingData,
    source: PairSource | PairStream,
    run_dir: RunDir,
    watchdog: Watchdog,
    stop: StopSignals,
) -> Iterator[FeatureStore | None]:
    """Features of all training pictures, made now where the folder has not those of this tower. Collective.

    Meanwhile no other run makes any in that folder; others that want the same may read them too.
    """
    if config.data.feature_cache is None:
        yield None
        return
    assert isinstance(source, PairSource)  # check_feature_cache refuses the others
    folder = _folder(config.data.feature_cache, run_dir)
    columns = source.columns(epoch=0, seed=config.run.seed)
    ids_n, first_n = np.unique(columns.image_ids, return_index=True)
    fingerprint = from_main(_fingerprint(config, source, ids_n, engine.model_state()), engine.ranks)
    with _FolderLock(folder, engine.ranks) as lock:
        lock.take(shared=True)
        while not from_main(_has(folder, fingerprint), engine.ranks):
            lock.take(shared=False)
            if not from_main(_has(folder, fingerprint), engine.ranks):  # who held it may have made them
                _check_room(folder, len(ids_n), engine)
                _make(config, engine, data, folder, ids_n, first_n, watchdog, stop)
                any_rank([False], engine.ranks)  # every part is on disk before the folder counts as whole
                if engine.ranks.is_main:
                    FeatureWriter(folder).finish(fingerprint)
            lock.take(shared=True)  # another may come between: so they are looked for again
        logger.info("Features of %d pictures are in %s.", len(ids_n), folder)
        yield open_features(folder)


class _FolderLock:
    """The main rank's hold of a folder of features, for all ranks. Methods are collective."""

    def __init__(self, folder: Path, ranks: Ranks) -> None:
        self._folder, self._ranks = folder, ranks
        self._lock = FileLock(folder / LOCK)

    def __enter__(self) -> _FolderLock:
        return self

    def __exit__(self, *_: object) -> None:
        self._lock.release()

    def take(self, *, shared: bool) -> None:
        """In place of what was held before. DataError on all ranks while another run has the folder, or where none can be."""
        refusal = from_main(self._refusal(shared) if self._ranks.is_main else None, self._ranks)
        if refusal is not None:
            raise DataError(refusal)

    def _refusal(self, shared: bool) -> str | None:
        self._lock.release()
        if shared and not self._folder.is_dir():
            return None  # nothing to guard yet
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            if self._lock.acquire_within(SECONDS_TO_END, shared=shared):
                return None
        except OSError as error:
            if shared:
                return None  # a folder that nobody may write into: nobody makes other features there
            return (
                f"data.feature_cache is {self._folder}, which cannot be written ({error.strerror}): name another folder, or "
                "leave it out"
            )
        return (
            f"data.feature_cache is {self._folder}, where another run makes or reads other features: wait for it, end it, or "
            "name another folder"
        )


def _folder(setting: str, run_dir: RunDir) -> Path:
    return run_dir.path / "features" if setting == "auto" else Path(setting)


def _has(folder: Path, fingerprint: str) -> bool:
    return is_feature_store(folder) and open_features(folder).fingerprint == fingerprint


def _fingerprint(
    config: TrainConfig, source: PairSource, ids_n: NDArray[np.int64], weights: Mapping[str, Tensor]
) -> str:
    """Of the pictures, how they are read, and the weights that look at them; "" where this rank has none."""
    if not weights:
        return ""
    digest = xxh3_128(source.content.encode())
    digest.update(ids_n.tobytes())
    how = (config.model.image, config.model.image_px, config.data.transform, config.train.precision)
    digest.update(repr(how).encode())
    for name in sorted(weights):
        if name.startswith("visual."):
            digest.update(name.encode())
            digest.update(
                weights[name].detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
            )
    return digest.hexdigest()


def _check_room(folder: Path, num: int, engine: Engine[CLIP]) -> None:
    needed = num * engine.module.text_projection.shape[-1] * 4
    there = next(path for path in (folder, *folder.parents) if path.exists())
    free = shutil.disk_usage(there).free
    if from_main(free < needed, engine.ranks):
        raise ConfigError(
            f"data.feature_cache needs {needed / 2**30:.1f} GiB in {folder} for {num} pictures, and {free / 2**30:.1f} "
            "are free: make room, or name another folder"
        )


@torch.no_grad()
def _make(
    config: TrainConfig,
    engine: Engine[CLIP],
    data: TrainingData,
    folder: Path,
    ids_n: NDArray[np.int64],
    first_n: NDArray[np.int64],
    watchdog: Watchdog,
    stop: StopSignals,
) -> None:
    """Every rank encodes a part of each round; all do as many forward passes, which sharded weights need."""
    ranks, size = engine.ranks, config.train.batch_size
    logger.info("Computing the features of %d pictures into %s.", len(ids_n), folder)
    dim = engine.module.text_projection.shape[-1]
    if ranks.is_main:
        FeatureWriter.begin(folder, ids_n, dim)
    any_rank([False], ranks)  # wait until the files are there
    writer = FeatureWriter(folder)
    rounds = -(-len(ids_n) // (size * ranks.world_size))
    starts = [
        min((number * ranks.world_size + ranks.rank) * size, len(ids_n) - 1) for number in range(rounds)
    ]
    places = [slice(start, min(start + size, len(ids_n))) for start in starts]
    loader = data.picture_loader([first_n[place].tolist() for place in places])
    engine.module.eval()
    for place, batch in zip(places, watchdog.watched(loader), strict=True):
        batch = batch.to(ranks.device)
        with engine.precision.autocast():
            features_BE = engine(batch.images_BCHW, None).float()
        # a picture that another one stands in for keeps none
        own_B = batch.image_ids_B == torch.from_numpy(ids_n[place]).to(ranks.device)
        writer.write(place, torch.where(own_B[:, None], features_BE, torch.nan))
        if any_rank([stop.received is not None], ranks)[0]:
            raise Preempted(
                f"stopped by a signal while the features of {folder} were made: the same command begins with them again"
            )
    writer.flush()
