"""Old name: `cosine_lr` of cn-clip, over `schedule.warmup_cosine`."""

from __future__ import annotations

from collections.abc import Callable

import torch

from cn_clip.training.schedule import warmup_cosine


def cosine_lr(
    optimizer: torch.optim.Optimizer, base_lr: float, warmup_length: int, steps: int
) -> Callable[[int], float]:
    """Function that sets the learning rate of a step on every parameter group, and returns it."""

    def set_lr(step: int) -> float:
        lr = warmup_cosine(step, base_lr=base_lr, warmup_steps=warmup_length, total_steps=steps)
        for group in optimizer.param_groups:
            group["lr"] = lr
        return lr

    return set_lr
