"""Checkpoints: the reference's dict and file names, written atomically, and where a run goes on from one.

A file holds `epoch` (1-based), `step` (optimizer steps done), `name`, `state_dict` (keys begin with `module.`),
`optimizer` (parameters in the reference's order); and ours beside: `scaler`, and `cn_clip` with a format number, the
version that wrote it, and the settings and number of ranks of the run.
"""

from __future__ import annotations

import logging
import os
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import cn_clip
from cn_clip.clip.weights import load_into, model_weights, optimizer_state_from_reference, read_checkpoint
from cn_clip.errors import WeightsError
from cn_clip.files import atomic_path, write_atomically
from cn_clip.parallel.engines import Engine
from cn_clip.training.run_dir import RunDir

logger = logging.getLogger(__name__)

FORMAT = 1
"""Of the `cn_clip` entry; raised when an older program could no longer continue from the file."""


@dataclass(frozen=True)
class Position:
    """Where a run stands."""

    epoch: int
    """1-based: of the epoch that `step` ends or stands in."""
    step: int
    """Optimizer steps done."""


class Checkpoints:
    """Writes and reads the checkpoints of one run."""

    def __init__(
        self,
        run_dir: RunDir,
        name: str,
        engine: Engine[Any],  # Any: whatever model it is
        settings: Mapping[str, Any],
        *,
        world_size: int,
        enabled: bool,
    ) -> None:
        self._run_dir, self._name = run_dir, name
        self.origin = {"settings": dict(settings), "world_size": world_size}
        """Of this run: what `continuation.differences` compares."""
        self._engine = engine
        self._enabled = enabled and run_dir.writes

    def save(self, file_name: str | None, position: Position) -> None:
        """Write `file_name` (None: no file of its own) and `epoch_latest.pt`."""
        if not self._enabled:
            return
        latest = self._run_dir.latest_checkpoint
        if file_name is None:
            self._write(latest, position)
            return
        path = self._run_dir.checkpoints / file_name
        self._write(path, position)
        started = time.time()
        _same_content(path, latest)
        _log_saved(latest, position, time.time() - started)

    def _write(self, path: Path, position: Position) -> None:
        started = time.time()
        content = {
            "epoch": position.epoch,
            "step": position.step,
            "name": self._name,
            "state_dict": {f"module.{key}": value for key, value in self._engine.model_state().items()},
            "optimizer": self._engine.optimizer_state(),
            "scaler": self._engine.precision.state_dict(),
            "cn_clip": {"format": FORMAT, "version": cn_clip.__version__, **self.origin},
        }
        write_atomically(path, lambda file: torch.save(content, file))
        _log_saved(path, position, time.time() - started)

    def resume(self, path: Path, *, with_optimizer: bool) -> tuple[Position, Mapping[str, Any]]:
        """Load a checkpoint, ours or the reference's, into the model and the optimizer.

        Returns where it stood, and the `origin` of its run; nothing for one of the reference.
        """
        logger.info("=> begin to load checkpoint '%s'", path)
        checkpoint = read_checkpoint(path)
        load_into(self._engine.module, model_weights(checkpoint), where=str(path))
        position = _position(checkpoint, path)
        if with_optimizer:
            if "optimizer" not in checkpoint:
                raise WeightsError(
                    f"{path} has no optimizer state: add --reset-optimizer (run.reset_optimizer=true), or start from "
                    "its weights with model.init_from"
                )
            optimizer_state_from_reference(
                checkpoint["optimizer"], self._engine.optimizer, self._engine.module
            )
            self._engine.precision.load_state_dict(checkpoint.get("scaler", {}))
            logger.info("=> optimizer state is restored from the checkpoint")
        return position, checkpoint.get("cn_clip", {})


def _position(checkpoint: Mapping[str, Any], path: Path) -> Position:
    try:
        return Position(epoch=int(checkpoint["epoch"]), step=int(checkpoint["step"]))
    except (KeyError, TypeError, ValueError) as error:
        raise WeightsError(
            f"{path} does not say at which epoch and step it was saved: it holds weights only, so start from it with "
            "model.init_from"
        ) from error


def _log_saved(path: Path, position: Position, seconds: float) -> None:
    logger.info(
        "Saved checkpoint %s (epoch %d @ %d steps) (writing took %s seconds)",
        path,
        position.epoch,
        position.step,
        seconds,
    )


def _same_content(source: Path, target: Path) -> None:
    """Give a file a second name; a file system without links gets a copy."""
    with atomic_path(target) as partial:
        try:
            os.link(source, partial)
        except OSError:
            shutil.copyfile(source, partial)


def steps_done(position: Position, steps_per_epoch: int) -> int:
    """Optimizer steps to skip when a run goes on from `position` with `steps_per_epoch`.

    A checkpoint of a run with as many steps per epoch continues at its very step, also inside an epoch. With another
    number (other batch size, data or accumulation) its step means nothing here, so it continues after its epoch.
    """
    first, last = (position.epoch - 1) * steps_per_epoch, position.epoch * steps_per_epoch
    if first < position.step <= last:
        return position.step
    logger.info(
        "The checkpoint's step %d is not in its epoch %d of %d steps here: going on after that epoch.",
        position.step,
        position.epoch,
        steps_per_epoch,
    )
    return last
