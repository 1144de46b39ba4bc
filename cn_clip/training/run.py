"""One training run from its settings: start or continue, train, close."""

from __future__ import annotations

import logging
from pathlib import Path

from cn_clip.clip.model import CLIP
from cn_clip.config.legacy_flags import reference_params
from cn_clip.config.load import to_plain
from cn_clip.config.schema import TrainConfig
from cn_clip.data.loader import explained_worker_death
from cn_clip.data.pairs import PairStream
from cn_clip.errors import WeightsError
from cn_clip.losses.pair import PairLoss
from cn_clip.parallel.gather import from_main
from cn_clip.parallel.precision import Precision
from cn_clip.parallel.ranks import Ranks, start_ranks
from cn_clip.training.build import (
    build_clip,
    frozen_parts,
    initialise,
    module_of,
    parallelize,
)
from cn_clip.training.checkpoint import Checkpoints, steps_done
from cn_clip.training.continuation import differences
from cn_clip.training.contrastive_task import ContrastiveTask, Encoding
from cn_clip.training.optimizer import build_optimizer
from cn_clip.training.run_dir import RunDir, logging_to
from cn_clip.training.step_log import step_log
from cn_clip.training.trainer import Plan, Trainer
from cn_clip.training.training_data import TrainingData, open_sources, order_of
from cn_clip.training.validation import Validation

logger = logging.getLogger(__name__)


def train(config: TrainConfig) -> None:
    """Train to the end of the settings' steps, continuing where the run folder or `run.resume` says."""
    with start_ranks(config.run.device) as ranks:
        run_dir = RunDir(config.run.logs_dir, config.run.name, writes=ranks.is_main)
        with logging_to(run_dir, ranks, debug=config.run.debug):
            _train(config, run_dir, ranks)


def _train(config: TrainConfig, run_dir: RunDir, ranks: Ranks) -> None:
    sources = open_sources(config.data, ranks)
    model = build_clip(config.model, config.run.seed)
    order = order_of(config, sources.train, ranks)
    data = TrainingData(config, sources, order, ranks, pad_id=model.bert.pad_id)
    per_epoch = data.order.steps_per_epoch
    max_steps = config.train.max_steps or per_epoch * config.train.max_epochs
    if config.optim.warmup_steps >= max_steps:
        logger.warning(
            "The learning rate warms up for %d steps, the whole run has %d: it never reaches its peak. "
            "Lower optim.warmup_steps (--warmup).",
            config.optim.warmup_steps,
            max_steps,
        )
    resume_from = from_main(_resume_path(config, run_dir), ranks)
    if resume_from is None and config.model.init_from is not None:
        initialise(model, config.model.init_from)
    task = _build_task(config, model, ranks)
    checkpoints = Checkpoints(
        run_dir,
        config.run.name,
        task.engine,
        to_plain(config),
        world_size=ranks.world_size,
        enabled=config.checkpoint.enabled,
    )
    # Only now, when what the settings name has been found: a mistyped command leaves an old run's settings alone.
    _log_settings(config, run_dir, ranks, max_steps)
    is_stream = isinstance(sources.train, PairStream)
    first_step = _first_step(config, resume_from, checkpoints, per_epoch, is_stream=is_stream)
    plan = Plan(per_epoch, first_step, max_steps)
    if plan.first_step >= max_steps:
        logger.info("The run is complete: %d of %d steps are done.", plan.first_step, max_steps)
    with step_log(config.log, run_dir, plan, data.order) as log:
        trainer = Trainer(
            task,
            plan,
            config,
            ranks=ranks,
            log=log,
            checkpoints=checkpoints,
            validate=Validation(task.engine, data.valid, ranks, config.validate).run if data.valid else None,
        )
        with explained_worker_death():
            trainer.fit(iter(data.train_loader(first_step=plan.first_step, last_step=max_steps)))


def _build_task(config: TrainConfig, model: CLIP, ranks: Ranks) -> ContrastiveTask:
    frozen = frozen_parts(model, config.model)
    precision = Precision(config.train.precision, ranks.device)
    engine = parallelize(model, config, precision, ranks)
    engine.set_optimizer(build_optimizer(model, config.optim))
    pair_loss: PairLoss = module_of("pair_loss", config.loss.type).build(config.loss.options)
    mask_ratio = config.model.mask_ratio
    encoding = Encoding(
        seed=config.run.seed,
        mask_ratio=lambda step: mask_ratio,
        keyed=config.train.randomness == "pair",
        text_groups=config.train.text_groups,
        survives_shortage=config.train.on_out_of_memory == "halve",
    )
    return ContrastiveTask(engine, pair_loss, config.loss.options, encoding, frozen=frozen)


def _log_settings(config: TrainConfig, run_dir: RunDir, ranks: Ranks, max_steps: int) -> None:
    """The reference's `Params:` lines and files, with what a run finds out for itself filled in as there."""
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


def _resume_path(config: TrainConfig, run_dir: RunDir) -> Path | None:
    """Checkpoint to go on from: the run's own latest, the one that was named, or none."""
    if config.run.resume == "none":
        return None
    if config.run.resume == "auto":
        return run_dir.latest_checkpoint if run_dir.latest_checkpoint.is_file() else None
    path = Path(config.run.resume)
    if not path.is_file():
        raise WeightsError(
            f"=> no checkpoint found at '{path}': correct --resume (run.resume), or leave it out to start anew"
        )
    return path


def _first_step(
    config: TrainConfig,
    resume_from: Path | None,
    checkpoints: Checkpoints,
    steps_per_epoch: int,
    *,
    is_stream: bool,
) -> int:
    """Optimizer steps already done, with the model and optimizer as they were then."""
    if resume_from is None:
        return 0
    position, origin = checkpoints.resume(resume_from, with_optimizer=not config.run.reset_optimizer)
    step = 0 if config.run.reset_position else steps_done(position, steps_per_epoch)
    if step and (changed := differences(origin, checkpoints.origin, is_stream=is_stream)):
        logger.warning(
            "This run meets other pairs than would have followed in the checkpoint's: %s.", "; ".join(changed)
        )
    logger.info("=> loaded checkpoint '%s' (epoch %d @ %d steps)", resume_from, position.epoch, step)
    return step
