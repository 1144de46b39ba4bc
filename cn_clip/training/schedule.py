"""Learning rate as a pure function of the step."""

from __future__ import annotations

import math
from dataclasses import dataclass

from cn_clip.config.schema import Optim
from cn_clip.errors import ConfigError


def warmup_cosine(step: int, *, base_lr: float, warmup_steps: int, total_steps: int) -> float:
    """Linear warm-up to `base_lr` over `warmup_steps`, then half a cosine to 0 at `total_steps`; `step` counts from 0.

    The reference's schedule; with a plain float, since the numpy one it stores cannot be read back with
    `weights_only=True`.
    """
    if step < warmup_steps:
        return base_lr * (step + 1) / warmup_steps
    decay_steps = max(total_steps - warmup_steps, 1)
    return 0.5 * (1 + math.cos(math.pi * (step - warmup_steps) / decay_steps)) * base_lr


@dataclass(frozen=True)
class Schedule:
    """Learning rate of each step of `total_steps`; a parameter group's own is this times its `lr_scale`."""

    settings: Optim
    total_steps: int

    def __post_init__(self) -> None:
        if self.settings.schedule == "cooldown" and self.settings.cooldown_steps == 0:
            raise ConfigError(
                "optim.schedule is cooldown, but optim.cooldown_steps is 0: say over how many last steps the learning "
                "rate goes down, or set optim.schedule=constant"
            )

    def lr(self, step: int) -> float:
        """Of the optimizer step `step`, counted from 1."""
        optim, done, total = self.settings, step - 1, self.total_steps
        peak, warmup = optim.lr, optim.warmup_steps
        assert peak is not None  # build_config filled it in
        if optim.schedule == "cosine" or done < warmup:
            # towards 0 it is the reference's to the last bit; an end above 0 lifts the whole arc, not the warm-up
            end = optim.end_lr if done >= warmup else 0.0
            return end + warmup_cosine(done, base_lr=peak - end, warmup_steps=warmup, total_steps=total)
        if optim.schedule == "constant":
            return peak
        start = max(total - optim.cooldown_steps, warmup)
        return peak + (optim.end_lr - peak) * max(done - start, 0) / max(total - start, 1)
