"""The loop: steps, and what is due after each. Knows a task, not what the task trains."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator

from cn_clip.config.schema import TrainConfig
from cn_clip.data.batches import PairBatch
from cn_clip.errors import TrainingError
from cn_clip.parallel.ranks import Ranks
from cn_clip.training.checkpoint import Checkpoints, Position
from cn_clip.training.plan import Plan, is_due
from cn_clip.training.schedule import warmup_cosine
from cn_clip.training.step_log import StepLog
from cn_clip.training.task import StepReport, Task
from cn_clip.training.validation import ValidationResults


class Trainer:
    def __init__(
        self,
        task: Task,
        plan: Plan,
        config: TrainConfig,
        *,
        ranks: Ranks,
        log: StepLog,
        checkpoints: Checkpoints,
        validate: Callable[[], ValidationResults] | None,
    ) -> None:
        self._task, self._engine = task, task.engine
        self._plan, self._config, self._ranks = plan, config, ranks
        self._log, self._checkpoints, self._validate = log, checkpoints, validate

    def fit(self, micro_batches: Iterator[PairBatch]) -> None:
        """Train from the plan's first step to its last; `micro_batches` begin with those of the first."""
        self._task.train_mode()
        ended = time.perf_counter()
        for step in range(self._plan.first_step + 1, self._plan.max_steps + 1):
            batches = [
                next(micro_batches).to(self._ranks.device) for _ in range(self._config.train.accumulate)
            ]
            data_seconds = time.perf_counter() - ended
            report, lr = self.train_step(batches, step)
            step_seconds = time.perf_counter() - ended
            self._log.advance()
            if self._ranks.is_main and is_due(step, self._config.log.every_steps):
                self._log.train(step, report, lr=lr, data_seconds=data_seconds, step_seconds=step_seconds)
            ended = time.perf_counter()
            self._follow(step)

    def train_step(self, batches: list[PairBatch], step: int) -> tuple[StepReport, float]:
        """One optimizer step, counted from 1; returns what it saw and its learning rate."""
        optim = self._config.optim
        assert optim.lr is not None  # build_config filled it in
        lr = warmup_cosine(
            step - 1, base_lr=optim.lr, warmup_steps=optim.warmup_steps, total_steps=self._plan.max_steps
        )
        for group in self._engine.optimizer.param_groups:
            group["lr"] = lr
        self._engine.zero_grad()
        report = self._task.accumulate_gradients(batches, step)
        if not math.isfinite(
            report.loss
        ):  # of the global batch: every rank stops here, and no checkpoint is spoilt
            raise TrainingError(
                f"the loss of step {step} is {report.loss}: the checkpoints hold the steps before it; go on from one with "
                "a lower optim.lr, a longer optim.warmup_steps, or train.precision=amp_bf16"
            )
        norm = self._engine.step(self._config.optim.max_norm)
        return report.after(
            logit_scale=self._task.after_step(), gradient_norm=norm, applied=math.isfinite(norm)
        ), lr

    def _follow(self, step: int) -> None:
        """Validate and save when it is due after `step`; validation first, as in the reference."""
        validate, checkpoint = self._config.validate, self._config.checkpoint
        epoch, ends_epoch = self._plan.epoch_of(step), self._plan.ends_epoch(step)
        if is_due(step, validate.every_steps) or (ends_epoch and is_due(epoch, validate.every_epochs)):
            self._run_validation(step, epoch)
        if is_due(step, checkpoint.every_steps):
            self._checkpoints.save(f"epoch_{epoch}_{step}.pt", Position(epoch, step))
        if ends_epoch:
            own_file = epoch == self._plan.max_epochs or is_due(epoch, checkpoint.every_epochs)
            self._checkpoints.save(f"epoch{epoch}.pt" if own_file else None, Position(epoch, step))

    def _run_validation(self, step: int, epoch: int) -> None:
        if self._validate is None:
            return
        self._log.begin_valid(step, epoch)
        self._log.valid(step, epoch, self._validate())
        self._task.train_mode()
