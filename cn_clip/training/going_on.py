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

from cn_clip.config.schema import Run, TrainConfig
from cn_clip.data.pairs import PairStream
from cn_clip.errors import WeightsError
from cn_clip.files import write_atomically
from cn_clip.training.checkpoints import Position, SavedRun, read_saved, steps_done
from cn_clip.training.continuation import differences, length_of, stage_changes, stages_in
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


def way_on(typed: Run) -> str:
    """What a person does to go on from the run's latest file, after a command with these settings."""
    left_out = [
        name
        for name, was_typed in (
            ("--resume (run.resume)", typed.resume != "auto"),
            ("--reset-optimizer", typed.reset_optimizer),
            ("--reset-data-offset", typed.reset_position),
        )
        if was_typed
    ]
    if not left_out:
        return "the same command goes on from there"
    return f"the same command without {' and '.join(left_out)} goes on from there, this one would begin as it did"


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
    if stages_in(saved.origin) and config.stages:
        step = _steps_in_stages(saved, legs, origin)
        _warn_of_stages(saved, legs, origin, step)
    elif len(legs) > 1 and not changed:
        step = saved.position.step  # counts through the stages
    else:
        step = steps_done(saved.position, legs[0].plan.steps_per_epoch)
    if step and changed:
        logger.warning(
            "This run meets other pairs than would have followed in the checkpoint's: %s.", "; ".join(changed)
        )
    return step


def is_unvalidated(saved: SavedRun, done: int) -> bool:
    """Whether a validation is due before the step that follows; not where a run begins elsewhere."""
    return saved.position.unvalidated and saved.position.step == done


def _steps_in_stages(saved: SavedRun, legs: Sequence[Leg], origin: Mapping[str, Any]) -> int:
    """The checkpoint's place in its stage, told in the steps of that stage here; all, where there is none any more."""
    leg = _leg_of(saved, legs)
    if leg is None:
        return max(saved.position.step, legs[-1].plan.last_step)
    then, position = {**leg.facts(), **saved.origin.get("plan", {})}, saved.position
    was, now = stages_in(saved.origin)[position.stage], stages_in(origin)[leg.stage.number]
    if position.step == then["last_step"] and length_of(was) == length_of(now):
        return leg.plan.last_step
    inside = Position(position.epoch - then["epochs_before"], position.step - then["begin"])
    done = steps_done(inside, leg.plan.steps_per_epoch)
    if then["steps_per_epoch"] != leg.plan.steps_per_epoch:  # its step may be in that epoch by chance
        done = inside.epoch * leg.plan.steps_per_epoch
    return leg.plan.begin + min(max(done, 0), leg.num_steps)


def _leg_of(saved: SavedRun, legs: Sequence[Leg]) -> Leg | None:
    """By its name, or where none has it any more by its number."""
    name, number = saved.origin.get("plan", {}).get("name"), saved.position.stage
    named = [leg for leg in legs if leg.stage.name == name]
    return next(iter([*named, *legs[number : number + 1]]), None)


def _warn_of_stages(saved: SavedRun, legs: Sequence[Leg], origin: Mapping[str, Any], step: int) -> None:
    changed = stage_changes(saved.origin, origin)
    if not changed:
        return
    leg = _leg_of(saved, legs)
    where = (
        f"goes on in stage {leg.stage.name!r} with {step - leg.plan.begin} of its {leg.num_steps} steps done"
        if leg is not None
        else f"has no stage {saved.position.stage + 1}, which the checkpoint is from, so all of it counts as done"
    )
    logger.warning("The stages are not those of the checkpoint: %s. This run %s.", "; ".join(changed), where)
