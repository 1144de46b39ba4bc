"""One stage of a run: its model, what moves it and what goes along with it, put together and trained."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from cn_clip.clip.lora import add_adapters, merged
from cn_clip.config.load import to_plain
from cn_clip.config.schema import TrainConfig
from cn_clip.data.feature_store import FeatureStore
from cn_clip.data.loader import explained_worker_death
from cn_clip.parallel.gather import from_main
from cn_clip.parallel.precision import Precision
from cn_clip.parallel.ranks import Ranks
from cn_clip.parallel.watchdog import Watchdog
from cn_clip.towers.attention_kernel import choose_attention
from cn_clip.training.average import WeightAverage
from cn_clip.training.bad_steps import BadSteps
from cn_clip.training.build import build_clip, build_task, initialise, parallelize
from cn_clip.training.checkpoints import RunState, SavedRun
from cn_clip.training.contrastive_task import ContrastiveTask
from cn_clip.training.distillation import open_distillation
from cn_clip.training.feature_cache import cached_features
from cn_clip.training.freezing import freeze_towers
from cn_clip.training.going_on import is_unvalidated
from cn_clip.training.optimizer import build_optimizer
from cn_clip.training.run_dir import RunDir
from cn_clip.training.saving import Saver
from cn_clip.training.schedule import Schedule
from cn_clip.training.step_log import StepLog
from cn_clip.training.stop_signals import StopSignals
from cn_clip.training.timeline import Leg
from cn_clip.training.trainer import Companions, Trainer, Validate
from cn_clip.training.training_data import TrainingData
from cn_clip.training.validation import Validation


@dataclass(frozen=True)
class RunContext:
    """What is the same for every stage of a run."""

    config: TrainConfig
    run_dir: RunDir
    ranks: Ranks
    stop: StopSignals
    watchdog: Watchdog
    token: str
    """Of what was begun in the run folder, in all its checkpoints (`going_on.run_token`)."""
    way_on: str
    """What a person does to go on from the latest checkpoint."""

    @cached_property
    def origin(self) -> Mapping[str, Any]:  # Any: plain settings
        """What a checkpoint tells of the run it is from."""
        return {"settings": to_plain(self.config), "world_size": self.ranks.world_size, "token": self.token}


@dataclass(frozen=True)
class StageRun:
    """A stage, ready to be trained."""

    context: RunContext
    leg: Leg
    task: ContrastiveTask
    data: TrainingData
    state: RunState
    saver: Saver
    validates_first: bool
    """The run was stopped where a validation was due."""

    def train(self, log: StepLog) -> None:
        """To the stage's last step. Collective."""
        context, plan, config = self.context, self.leg.plan, self.leg.stage.config
        with explained_worker_death(), self.saver as saver, self._features() as features:
            saver.before_save = log.sync
            companions = Companions(
                log=log,
                saver=saver,
                bad_steps=self._bad_steps(),
                watchdog=context.watchdog,
                validate=self._validate_with(log) if self.data.valid else None,
                average=self._average,
            )
            trainer = Trainer(self.task, plan, config, companions, self._lr)
            loader = self.data.train_loader(
                first_step=plan.first_step - plan.begin,
                last_step=plan.last_step - plan.begin,
                features=features,
            )
            trainer.fit(iter(loader), validate_first=self.validates_first)

    def _bad_steps(self) -> BadSteps:
        context, limit = self.context, self.leg.stage.config.train.max_bad_steps
        first_step, rank = self.leg.plan.first_step, context.ranks.rank
        steps = BadSteps(limit, context.run_dir.path, rank, first_step=first_step)
        # a rank on another machine, or of another number, may not have the file: all must count alike
        steps.in_a_row = from_main(steps.in_a_row, context.ranks)
        return steps

    def _features(self) -> AbstractContextManager[FeatureStore | None]:
        if self.leg.plan.first_step == self.leg.plan.last_step:
            return nullcontext()
        context, config = self.context, self.leg.stage.config
        source = self.leg.sources.train
        return cached_features(
            config, self.task.engine, self.data, source, context.run_dir, context.watchdog, context.stop
        )

    @property
    def _average(self) -> WeightAverage | None:
        return self.state.average if isinstance(self.state.average, WeightAverage) else None

    @cached_property
    def _schedule(self) -> Schedule:
        optim, plan = self.leg.stage.config.optim, self.leg.plan
        return Schedule(optim, plan.max_steps if optim.horizon == "run" else self.leg.num_steps)

    def _lr(self, step: int) -> float:
        return self._schedule.lr(
            step if self._schedule.settings.horizon == "run" else step - self.leg.plan.begin
        )

    def _validate_with(self, log: StepLog) -> Validate:
        validation = Validation(
            self.task.engine,
            self.data.valid,
            self.context.ranks,
            self.leg.stage.config.validate,
            watched=self.context.watchdog.watched,
        )

        def validate(step: int, epoch: int) -> Mapping[str, float]:
            log.begin_valid(step, epoch)
            if self._average is None:
                results = validation.run()
            else:
                with self._average.applied():
                    results = validation.run()
            log.valid(step, epoch, results)
            return results.numbers()

        return validate


def prepare_stage(context: RunContext, leg: Leg, saved: SavedRun | None, *, is_start: bool) -> StageRun:
    """Build a stage. `saved`: what it goes on from; `is_start`: nothing of this process was trained before."""
    config, ranks = leg.stage.config, context.ranks
    model = build_clip(config.model, config.run.seed, config.loss, read_towers=saved is None)
    distillation = open_distillation(config, model, ranks)
    data = TrainingData(config, leg.sources, leg.order, ranks, pad_id=model.bert.pad_id)
    if saved is not None:
        saved.load_weights(model)
    elif config.model.init_from is not None:
        initialise(model, config.model.init_from)
    adapted = add_adapters(model, config.lora, config.run.seed)
    if saved is not None:
        saved.load_adapters(model)
    model.key_dropout()  # of the adapters too
    precision = Precision(config.train.precision, ranks.device)
    choose_attention(
        model.visual,
        config.model.attention,
        device=ranks.device,
        dtype=precision.autocast_dtype or precision.weights_dtype,
        flash_attention=config.model.flash_attention,
    )
    frozen = [*adapted, *freeze_towers(model, config.model)]
    engine = parallelize(model, config, precision, ranks)
    engine.set_optimizer(build_optimizer(model, config.optim))
    average = None
    if config.ema.decay is not None:
        average = WeightAverage(engine.module, config.ema, config.parallel)
    state = RunState(config.run.name, engine, {**context.origin, "plan": leg.facts()}, average, merge=merged)
    if saved is not None:
        if not (is_start and config.run.reset_optimizer):
            # a stage's own settings hold from its first step; without stages the file's do, as in the reference
            saved.load_training(state, keep_settings=bool(context.config.stages))
        saved.say_loaded(leg.plan.first_step)
    task = build_task(config, leg, engine, frozen, distillation)
    saver = Saver(
        config.checkpoint,
        state,
        context.run_dir,
        leg.plan,
        stage=leg.stage.number,
        stop=context.stop,
        way_on=context.way_on,
    )
    if saved is not None:
        saver.continue_from(saved)
    validates_first = is_start and saved is not None and is_unvalidated(saved, leg.plan.first_step)
    return StageRun(context, leg, task, data, state, saver, validates_first)
