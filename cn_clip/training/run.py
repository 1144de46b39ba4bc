"""One training run from its settings: start or continue, train stage by stage, close."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import ExitStack
from datetime import timedelta

from cn_clip.config.legacy_flags import reference_params
from cn_clip.config.load import to_plain
from cn_clip.config.schema import TrainConfig
from cn_clip.parallel.gather import from_main
from cn_clip.parallel.ranks import start_ranks
from cn_clip.parallel.watchdog import Watchdog
from cn_clip.training.build import build_config
from cn_clip.training.checkpoints import SavedRun, read_saved
from cn_clip.training.checkpoints.best import check_best
from cn_clip.training.checkpoints.folders import CheckpointFolders
from cn_clip.training.diagnosis.model_settings import check_model_settings
from cn_clip.training.distillation import find_teacher
from cn_clip.training.going_on import (
    as_started_again,
    checkpoint_to_go_on_from,
    is_unvalidated,
    run_token,
    steps_behind,
    way_on,
)
from cn_clip.training.missing_negatives import missing_negatives
from cn_clip.training.run_dir import RunDir, alone_in, logging_to
from cn_clip.training.stage_run import RunContext, prepare_stage
from cn_clip.training.stages import stages_of
from cn_clip.training.step_log import step_log
from cn_clip.training.stop_signals import StopSignals
from cn_clip.training.timeline import Leg, timeline_of
from cn_clip.training.unused_settings import unused_settings

logger = logging.getLogger(__name__)


def train(config: TrainConfig) -> None:
    """Train to the end of the settings' steps, continuing where the run folder or `run.resume` says."""
    timeout = timedelta(minutes=config.parallel.timeout_minutes)
    with ExitStack() as open_until_the_end:
        enter = open_until_the_end.enter_context
        ranks = enter(start_ranks(config.run.device, timeout))
        run_dir = RunDir(config.run.logs_dir, config.run.name, writes=ranks.is_main)
        enter(alone_in(run_dir, ranks))
        enter(logging_to(run_dir, ranks, debug=config.run.debug))
        watchdog = enter(Watchdog(ranks, timeout, log=run_dir.log if run_dir.writes else None))
        stop = enter(StopSignals())
        if run_dir.writes:
            CheckpointFolders(run_dir.checkpoints).bring_back()
        token = from_main(run_token(run_dir) if ranks.is_main else "", ranks)
        again = from_main(as_started_again(config, run_dir, token) if ranks.is_main else config, ranks)
        _train(RunContext(again, run_dir, ranks, stop, watchdog, token, way_on(config.run)))


def _train(context: RunContext) -> None:
    legs, saved, total = _to_do(context)
    if not legs:
        return
    stage = prepare_stage(context, legs[0], saved, is_start=True)
    del saved  # or its tensors lie in memory for the whole stage
    # Only now, when what the settings name has been found: a mistyped command leaves an old run's settings alone.
    _log_settings(context, total)
    with step_log(context.config.log, context.run_dir, legs[0].plan, legs[0].order) as log:
        stage.train(log)
        for leg in legs[1:]:
            del stage  # before the next model comes
            logger.info("Stage %r begins after step %d.", leg.stage.name, leg.plan.begin)
            log.begin_stage(leg.plan, leg.order)
            latest = read_saved(context.run_dir.latest_checkpoint)
            stage = prepare_stage(context, leg, latest, is_start=False)
            del latest
            stage.train(log)


def _to_do(context: RunContext) -> tuple[Sequence[Leg], SavedRun | None, int]:
    """The legs that are left, what they go on from, and the steps of the whole run.

    The last leg is there when it is at its end, none when the checkpoint is beyond it: then nothing may be taken back.
    """
    config, ranks = context.config, context.ranks
    check_best(config)
    stages = stages_of(config, build_config)
    if ranks.is_main:
        for sentence in unused_settings([stage.config for stage in stages]):
            logger.warning("%s.", sentence)
    legs = timeline_of(stages, ranks)
    if ranks.is_main:
        for sentence in missing_negatives(legs):
            logger.warning("%s.", sentence)
        for leg in legs:
            _warn_of_warmup(leg)
            _warn_of_size(leg)
    for leg in legs[1:]:
        check_model_settings(leg.stage, ranks)
    resume_from = from_main(checkpoint_to_go_on_from(config, context.run_dir), ranks)
    saved = read_saved(resume_from) if resume_from else None
    done = steps_behind(config, saved, legs, context.origin)
    total = legs[-1].plan.last_step
    first_end = done if saved is not None and is_unvalidated(saved, done) else done + 1
    left = [leg for leg in legs if leg.plan.last_step >= first_end]
    for leg in left:
        find_teacher(leg.stage.config)
    if done >= total:
        logger.info("The run is complete: %d of %d steps are done.", done, total)
        left = legs[-1:] if done == total else []
    return [leg.starting_at(done) for leg in left], saved, total


def _warn_of_warmup(leg: Leg) -> None:
    optim, name = leg.stage.config.optim, leg.stage.name
    if optim.warmup_steps >= leg.num_steps and optim.horizon == "stage":
        logger.warning(
            "The learning rate warms up for %d steps, %s has %d: it never reaches its peak. "
            "Lower optim.warmup_steps (--warmup).",
            optim.warmup_steps,
            f"stage {name!r}" if name else "the whole run",
            leg.num_steps,
        )
    elif optim.schedule == "cooldown" and optim.cooldown_steps > leg.num_steps and optim.horizon == "stage":
        logger.warning(
            "optim.cooldown_steps is %d, %s has %d steps: the learning rate falls from the first of them on.",
            optim.cooldown_steps,
            f"stage {name!r}" if name else "the whole run",
            leg.num_steps,
        )


def _warn_of_size(leg: Leg) -> None:
    num_pairs, batch = leg.order.num_pairs, leg.order.global_batch
    if num_pairs < batch:
        logger.warning(
            "There are %d training pairs, fewer than the global batch of %d: some come twice in each step. "
            "Lower train.batch_size (--batch-size) or train.accumulate (--accum-freq).",
            num_pairs,
            batch,
        )


def _log_settings(context: RunContext, max_steps: int) -> None:
    """The reference's `Params:` lines and files, with what a run finds out for itself filled in as there."""
    config, run_dir, ranks = context.config, context.run_dir, context.ranks
    params = reference_params(config) | {
        "max_steps": max_steps,
        "rank": ranks.rank,
        "local_device_rank": ranks.local_rank,
        "world_size": ranks.world_size,
        "device": ranks.device,
        "log_path": run_dir.log,
        "checkpoint_path": run_dir.checkpoints,
        "log_level": logging.getLogger().level,
    }
    run_dir.write_settings(to_plain(config), params)
    if ranks.is_main:
        logger.info("Params:")
    if ranks.local_rank == 0:
        for name in sorted(params):
            logger.info("  %s: %s", name, params[name])
    if ranks.device.type == "cuda":
        logger.info("Use GPU: %d for training", ranks.device.index)
    else:
        logger.info("Use %s for training", ranks.device.type.upper())
