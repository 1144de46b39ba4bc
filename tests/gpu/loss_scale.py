"""fp16 with its loss scale: the loss falls, and a step whose gradients overflow changes nothing but the scale."""

from __future__ import annotations

import math

import torch

from cn_clip.data.batches import PairBatch
from cn_clip.parallel.precision import LossScale
from cn_clip.training.contrastive_task import ContrastiveTask
from gpu.outcome import Outcome, passes
from gpu.workplace import BATCH, NUM_PAIRS, Workplace, one_step

STEPS = 80
ENOUGH = 0.8
"""Of the loss of guessing, for the last epoch's loss."""


def check_loss_falls(place: Workplace) -> list[Outcome]:
    """The trainer with train.precision=amp: fp16 on CUDA, bf16 on the CPU."""
    losses = [row["loss"] for row in place.train("amp", "train.precision=amp", f"train.max_steps={STEPS}")]
    epoch = NUM_PAIRS // BATCH
    last, guessing = sum(losses[-epoch:]) / epoch, math.log(BATCH)
    kind = "fp16 with a loss scale" if place.is_cuda else "bf16, the CPU's amp"
    says = f"{kind}: loss {losses[0]:.3f} in the first step, {last:.3f} in the last epoch of {STEPS} steps, guessing {guessing:.3f}"
    return [passes("amp learns", last < ENOUGH * guessing, says)]


def check_overflow(place: Workplace) -> list[Outcome]:
    """An infinite gradient put in by hand, and on CUDA a scale under which fp16 overflows by itself."""
    task, pairs = place.task(place.config(train__precision="amp"))
    scale = task.engine.precision.loss_scale
    if not scale.enabled:  # the CPU has no fp16: the same rule on its own
        scale = task.engine.precision.loss_scale = LossScale(enabled=True)
    one_step(task, pairs, 1)
    before, scale_before = _weights(task), scale.value
    task.engine.zero_grad()
    task.accumulate_gradients([pairs], 2)
    gradient = next(p.grad for p in task.module.parameters() if p.grad is not None)
    gradient.view(-1)[0] = float("inf")
    task.engine.step(None)
    found = [_skipped("an infinite gradient", task, before, scale_before)]
    if place.is_cuda:
        scale.value = scale_before = 2.0**60
        one_step(task, pairs, 3)
        found.append(_skipped("a scale of 2^60", task, before, scale_before))
    norm = _until_finite(task, pairs)
    moved = any(not torch.equal(old, new) for old, new in zip(before, _weights(task), strict=True))
    found.append(
        passes(
            "step after", moved, f"the next finite step (norm {norm:.3g}, scale {scale.value:g}) is applied"
        )
    )
    return found


def _until_finite(task: ContrastiveTask, pairs: PairBatch) -> float:
    """Steps until one is applied, at most as many as a scale of 2^60 takes to come down; the norm of the last."""
    norm = float("inf")
    for step in range(4, 70):
        norm = one_step(task, pairs, step)
        if norm < float("inf"):
            break
    return norm


def _weights(task: ContrastiveTask) -> list[torch.Tensor]:
    return [parameter.detach().clone() for parameter in task.module.parameters()]


def _skipped(what: str, task: ContrastiveTask, before: list[torch.Tensor], scale_before: float) -> Outcome:
    same = all(torch.equal(old, new) for old, new in zip(before, _weights(task), strict=True))
    scale = task.engine.precision.loss_scale.value
    says = f"{what}: weights {'untouched' if same else 'CHANGED'}, scale {scale_before:g} -> {scale:g}"
    return passes("overflow", same and scale == scale_before / 2, says)
