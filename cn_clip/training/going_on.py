"""Where a run begins: at its first step, or behind a checkpoint of its own or of another run."""

from __future__ import annotations

import json
import logging
import os
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from cn_clip.config.schema import TrainConfig
from cn_clip.data.pairs import PairStream
from cn_clip.errors import WeightsError
from cn_clip.files import write_atomically
from cn_clip.training.checkpoints import SavedRun, read_saved, steps_done
from cn_clip.training.continuation import differences
from cn_clip.training.run_dir import RunDir
from cn_clip.training.timeline import Leg

logger = logging.getLogger(__name__)


RESTARTS = ("CN_CLIP_RESTART", "TORCHELASTIC_RESTART_COUNT", "SLURM_RESTART_COUNT")
"""Where our launcher, torchrun and Slurm say how often they have started these processes again."""
LAUNCHERS = ("SLURM_JOB_ID", "CN_CLIP_EXIT_MARKER", "TORCHELASTIC_RUN_ID")
"""What stays the same however often that is, the longest-lived first."""
TOKEN = "run_token.json"
"""File of the run folder that tells what was begun there last: a checkpoint with another token is not of it."""


def run_token(run_dir: RunDir) -> str:
    """What checkpoints of this run carry, and go on carrying when its launcher starts it again. The main rank asks."""
    path, launcher = run_dir.path / TOKEN, _launcher()
    if _is_started_again() and (kept := _kept_token(path)) is not None and kept[1] == launcher:
        return kept[0]
    token = uuid.uuid4().hex
    write_atomically(path, json.dumps({"token": token, "launcher": launcher}).encode())
    return token


def _is_started_again() -> bool:
    return any(os.environ.get(name, "0") not in ("", "0") for name in RESTARTS)


def _launcher() -> str:
    return next((f"{name}={os.environ[name]}" for name in LAUNCHERS if os.environ.get(name)), "")


def _kept_token(path: Path) -> tuple[str, str] | None:
    try:
        kept = json.loads(path.read_bytes())
        return str(kept["token"]), str(kept["launcher"])
    except (OSError, ValueError, KeyError, TypeError):
        return None  # none was begun here, or by a version that had none


def as_started_again(config: TrainConfig, run_dir: RunDir, token: str) -> TrainConfig:
    """A run that its launcher started again goes on from what it has saved, not once more from where it began.

    What another run left in its folder is not its own, though it has the same name.
    """
    latest = run_dir.latest_checkpoint
    if not _is_started_again() or not latest.exists() or _token_of(latest) != token:
        return config
    run = replace(config.run, resume="auto", reset_optimizer=False, reset_position=False)
    return replace(config, run=run)


def _token_of(latest: Path) -> object:
    return read_saved(latest).origin.get("token")


def checkpoint_to_go_on_from(config: TrainConfig, run_dir: RunDir) -> Path | None:
    """The run's own latest, the one that was named, or none."""
    if config.run.resume == "none":
        return None
    if config.run.resume == "auto":
        return run_dir.latest_checkpoint if run_dir.latest_checkpoint.exists() else None
    path = Path(config.run.resume)
    if not path.exists():
        raise WeightsError(
            f"=> no checkpoint found at '{path}': correct --resume (run.resume), or leave it out to start anew"
        )
    return path


def steps_behind(
    config: TrainConfig,
    saved: SavedRun | None,
    legs: Sequence[Leg],
    origin: Mapping[str, Any],  # Any: plain settings
) -> int:
    """Optimizer steps of the run that are behind the checkpoint; `origin` is what this run's own would tell of it."""
    if saved is None or config.run.reset_position:
        return 0
    is_stream = isinstance(legs[0].sources.train, PairStream)
    changed = differences(saved.origin, origin, is_stream=is_stream)
    if len(legs) > 1 and not changed:
        step = saved.position.step  # counts through the stages
    else:
        step = steps_done(saved.position, legs[0].plan.steps_per_epoch)
    if step and changed:
        logger.warning(
            "This run meets other pairs than would have followed in the checkpoint's: %s.", "; ".join(changed)
        )
    return step
