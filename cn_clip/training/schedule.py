"""Learning rate as a pure function of the step."""

from __future__ import annotations

import math


def warmup_cosine(step: int, *, base_lr: float, warmup_steps: int, total_steps: int) -> float:
    """Linear warm-up to `base_lr` over `warmup_steps`, then half a cosine to 0 at `total_steps`.

    The reference's schedule; with a plain float, since the numpy one it stores cannot be read back with
    `weights_only=True`.
    """
    if step < warmup_steps:
        return base_lr * (step + 1) / warmup_steps
    decay_steps = max(total_steps - warmup_steps, 1)
    return 0.5 * (1 + math.cos(math.pi * (step - warmup_steps) / decay_steps)) * base_lr
