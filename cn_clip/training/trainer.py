"""The loop: steps, and what is due after each. Knows a task, not what the task trains."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

from cn_clip.config.schema import TrainConfig
from cn_clip.data.batches import PairBatch
from cn_clip.parallel.gather import gather_objects
from cn_clip.parallel.watchdog import Watchdog
from cn_clip.training.average import WeightAverage
from cn_clip.training.bad_steps import BadSteps
from cn_clip.training.optimizer import set_lr
from cn_clip.training.plan import Plan, is_due
from cn_clip.training.saving import MINUTES, STOP, Saver
from cn_clip.training.step_log import StepLog
from cn_clip.training.task import StepReport, Task

Validate = Callable[[int, int], Mapping[str, float]]
"""(step, epoch) -> what validation found, by name; it says so itself."""


@dataclass(frozen=True, kw_only=True)
class Companions:
    """What goes along with the steps of a stage."""

    log: StepLog
    saver: Saver
    bad_steps: BadSteps
    watchdog: Watchdog
    validate: Validate | None = None
    average: WeightAverage | None = None


class Trainer:
    """Trains one stage of a run."""

    def __init__(
        self,
        task: Task,
        plan: Plan,
        config: TrainConfig,
        companions: Companions,
        lr: Callable[[int], float],
    ) -> None:
        """`lr`: learning rate of an optimizer step of the run, counted from 1."""
        self._task, self._engine, self._ranks = task, task.engine, task.engine.ranks
        self._plan, self._config, self._with, self._lr = plan, config, companions, lr

    def fit(self, micro_batches: Iterator[PairBatch], *, validate_first: bool = False) -> None:
        """Train from the plan's first step to its last; `micro_batches` begin with those of the first.

        validate_first: do what was due after the last step that is done.
        Raises Preempted, with everything saved, when a rank was asked to stop.
        """
        self._task.train_mode()
        if validate_first:
            self._follow(self._plan.first_step, MINUTES)  # saved at once, so that it is validated once
        ended = time.perf_counter()
        for step in range(self._plan.first_step + 1, self._plan.last_step + 1):
            self._with.watchdog.note(step, "reading its pairs")
            batches = [
                next(micro_batches).to(self._ranks.device) for _ in range(self._config.train.accumulate)
            ]
            data_seconds = time.perf_counter() - ended
            self._with.watchdog.note(step, "computing with all ranks")
            report, lr = self.train_step(batches, step)
            step_seconds = time.perf_counter() - ended
            self._with.log.advance()
            if report.applied and is_due(step, self._config.log.every_steps):
                self._say(step, report, lr, data_seconds=data_seconds, step_seconds=step_seconds)
            ended = time.perf_counter()
            self._follow(step, report.notices)

    def train_step(self, batches: list[PairBatch], step: int) -> tuple[StepReport, float]:
        """One optimizer step, counted from 1; returns what it saw and its learning rate."""
        lr = self._lr(step)
        set_lr(self._engine.optimizer, lr)
        self._engine.zero_grad()
        report = self._task.accumulate_gradients(
            batches, step, notices=self._with.saver.notices(), diagnose=self._is_diagnosed(step)
        )
        scale = self._engine.precision.loss_scale.value
        # the loss is that of the global batch, and the norm that of all ranks' gradients: all skip the same steps
        norm = self._engine.step(self._config.optim.max_norm) if math.isfinite(report.loss) else math.nan
        is_bad = self._with.bad_steps.is_bad(step, report.loss, norm, batches, scale=scale)
        if is_bad:
            self._with.log.skipped(step)
        elif self._with.average is not None:
            self._with.average.update()
        return report.after(logit_scale=self._task.after_step(), gradient_norm=norm, applied=not is_bad), lr

    def _is_diagnosed(self, step: int) -> bool:
        return self._config.log.diagnostics and is_due(step, self._config.log.every_steps)

    def _say(
        self, step: int, report: StepReport, lr: float, *, data_seconds: float, step_seconds: float
    ) -> None:
        if self._is_diagnosed(step):
            of_all = gather_objects(list(report.suspects), self._ranks)
            report = replace(report, suspects=[suspect for of_rank in of_all for suspect in of_rank])
        if self._ranks.is_main:
            self._with.log.train(step, report, lr=lr, data_seconds=data_seconds, step_seconds=step_seconds)

    def _follow(self, step: int, notices: int) -> None:
        """Validate and save when it is due after `step`; validation first, as in the reference.

        Who is asked to stop has little time: the validation is left to whoever goes on from what is saved.
        """
        epoch, ends_epoch = self._plan.epoch_of(step), self._plan.ends_epoch(step)
        is_left = self._is_validated(step) and bool(notices & STOP)
        numbers = self._validated(step, epoch) if self._is_validated(step) and not is_left else None
        self._with.watchdog.note(step, "saving what is due")
        self._with.saver.after_step(step, epoch, ends_epoch, numbers, notices=notices, unvalidated=is_left)

    def _is_validated(self, step: int) -> bool:
        settings, epoch = self._config.validate, self._plan.epoch_of(step)
        is_epochs = self._plan.ends_epoch(step) and is_due(epoch, settings.every_epochs)
        return self._with.validate is not None and (is_due(step, settings.every_steps) or is_epochs)

    def _validated(self, step: int, epoch: int) -> Mapping[str, float]:
        assert self._with.validate is not None  # nothing is due without
        self._with.watchdog.note(step, "validating")
        numbers = self._with.validate(step, epoch)
        self._task.train_mode()
        return numbers
