"""Our training step outside any run: one model, one AdamW, and a task for each number type and way of encoding."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from towers_and_pairs import PAD_ID, Fields

from cn_clip.clip.model import CLIP
from cn_clip.config.schema import Optim, Parallel
from cn_clip.data.batches import PairBatch, trim_padding
from cn_clip.losses.pair import contrastive
from cn_clip.parallel.engines import Engine
from cn_clip.parallel.host_memory import keep_freed_memory
from cn_clip.parallel.precision import Precision
from cn_clip.parallel.ranks import Ranks
from cn_clip.parallel.wrap import wrap
from cn_clip.training.contrastive_task import ContrastiveTask
from cn_clip.training.encoding import Encoding
from cn_clip.training.optimizer import build_optimizer

OPTIM = Optim(lr=1e-5, beta1=0.9, beta2=0.98, eps=1e-6, weight_decay=0.2)


class OurStep:
    """The step of the trainer, under the DDP engine of one process."""

    def __init__(self, model: Fields, clock: Callable[[], float], *, compile: bool = False) -> None:
        keep_freed_memory()  # as the trainer does
        torch.manual_seed(0)
        self.model, self._clock, self._compile = CLIP(**model), clock, compile
        self._optimizer = build_optimizer(self.model, OPTIM)
        self._tasks: dict[str, ContrastiveTask] = {}
        self._step = 0

    def seconds(
        self, micro_batches: Sequence[tuple[Tensor, Tensor]], precision: str, *, trim: bool, **encoding: Any
    ) -> dict[str, float]:
        """Of one optimizer step on pictures and tokens, and of these those of the optimizer; and the loss."""
        task, batches = self._task(precision, encoding), _batches(micro_batches, trim)
        self._step += 1
        began = self._clock()
        task.engine.zero_grad()
        report = task.accumulate_gradients(batches, self._step)
        computed = self._clock()
        task.engine.step(None)
        task.after_step()
        ended = self._clock()
        return {"seconds": ended - began, "optimizer_seconds": ended - computed, "loss": report.loss}

    def engine(self, precision: str) -> Engine[CLIP]:
        """That of the steps in this number type."""
        return self._task(precision, {}).engine

    def _task(self, precision: str, encoding: dict[str, Any]) -> ContrastiveTask:
        key = f"{precision} {encoding}"
        if key not in self._tasks:
            cpu = torch.device("cpu")
            engine = wrap(
                self.model,
                Parallel(),
                Precision(precision, cpu),
                Ranks(rank=0, world_size=1, local_rank=0, device=cpu),
                blocks=[*self.model.visual.blocks(), *self.model.bert.blocks()],
                compile=self._compile and not self._tasks,
            )
            engine.set_optimizer(self._optimizer)
            options = contrastive.Options()
            task = ContrastiveTask(engine, contrastive.build(options), options, Encoding(seed=1, **encoding))
            task.train_mode()
            self._tasks[key] = task
        return self._tasks[key]


def _batches(micro_batches: Sequence[tuple[Tensor, Tensor]], trim: bool) -> list[PairBatch]:
    """As a loader hands them over: captions cut to the longest of each, unless `trim` is off."""
    found, start = [], 0
    for images, tokens in micro_batches:
        ids = torch.arange(start, start + len(images))
        start += len(images)
        tokens = trim_padding(tokens, PAD_ID) if trim else tokens
        found.append(PairBatch(images, tokens, ids, ids, ids, ids, ids))
    return found
