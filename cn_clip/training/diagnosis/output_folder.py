"""Whether a run can write what it is going to write, without writing it."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cn_clip.config.schema import TrainConfig
from cn_clip.errors import DataError
from cn_clip.training.diagnosis.finding import in_bytes
from cn_clip.training.diagnosis.memory import Prediction
from cn_clip.training.plan import is_due
from cn_clip.training.run_dir import RunDir
from cn_clip.training.timeline import Leg

FP32 = 4


@dataclass(frozen=True)
class DiskNeed:
    """What the checkpoints of a run take."""

    file_bytes: float
    """Of one, with optimizer state."""
    num_files: int
    """That lie there at once at the end, the one that is being written included."""

    @property
    def bytes(self) -> float:
        return self.file_bytes * self.num_files


def check_writable(run_dir: RunDir) -> Path:
    """Nearest folder of the run's that is there already; DataError where nothing can be written into it."""
    there = next(folder for folder in (run_dir.checkpoints, *run_dir.checkpoints.parents) if folder.exists())
    try:
        # a file without a name where the system has such: gone even if this process is killed
        with tempfile.TemporaryFile(dir=there):
            return there
    except OSError as error:
        raise DataError(
            f"cannot make the run folder {run_dir.path} ({error.strerror} in {there}): set run.logs_dir (--logs) to a folder "
            "that can be written"
        ) from error


def disk_need(config: TrainConfig, prediction: Prediction, legs: Sequence[Leg], done: int) -> DiskNeed:
    """Of the whole files of all steps after `done`."""
    weights = prediction.cost.weights
    average = weights.trained * FP32 if config.ema.decay is not None else 0
    file_bytes = float(weights.bytes + weights.buffer_bytes + weights.optimizer_bytes + average)
    if not config.checkpoint.enabled:
        return DiskNeed(file_bytes, 0)
    own_files = sum(num_own_files(config, leg, done) for leg in legs)
    if config.checkpoint.keep_last is not None:
        own_files = min(own_files, config.checkpoint.keep_last)
    best = 1 if config.checkpoint.best else 0
    # `epoch_latest.pt` is another name of the newest one, until a newer one is written beside it
    return DiskNeed(file_bytes, own_files + best + 1)


def num_own_files(config: TrainConfig, leg: Leg, done: int) -> int:
    """Files of a stage under names of their own; its end is always one."""
    settings, plan = config.checkpoint, leg.plan
    steps = range(max(done, plan.begin) + 1, plan.last_step + 1)
    ends = [step for step in steps if plan.ends_epoch(step)]
    by_epoch = sum(
        is_due(plan.epoch_of(step), settings.every_epochs) or step == plan.last_step for step in ends
    )
    by_step = 0
    if settings.every_steps is not None and steps:
        by_step = steps[-1] // settings.every_steps - (steps[0] - 1) // settings.every_steps
    return by_epoch + by_step


def check_disk(need: DiskNeed, folder: Path) -> str:
    """One sentence; DataError where the checkpoints do not fit."""
    free = shutil.disk_usage(folder).free
    if need.num_files == 0:
        return f"no checkpoints are written; {in_bytes(free)} free in {folder}"
    if need.bytes > free:
        fitting = int(free // need.file_bytes) - 1
        advice = (
            f"set checkpoint.keep_last={fitting}"
            if fitting > 0
            else "set run.logs_dir (--logs) to another disk"
        )
        raise DataError(
            f"the checkpoints of this run take {in_bytes(need.bytes)} ({need.num_files} of {in_bytes(need.file_bytes)}), but "
            f"{folder} has {in_bytes(free)} free: make room, or {advice}"
        )
    return (
        f"checkpoints of {in_bytes(need.file_bytes)}, {need.num_files} at once at most: {in_bytes(need.bytes)} of the "
        f"{in_bytes(free)} free in {folder}"
    )
