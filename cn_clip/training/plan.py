"""How long a run is, and when what is due."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Plan:
    """How long a run is, and where this process starts in it; steps are optimizer steps."""

    steps_per_epoch: int
    first_step: int
    max_steps: int

    @property
    def max_epochs(self) -> int:
        return math.ceil(self.max_steps / self.steps_per_epoch)

    def epoch_of(self, step: int) -> int:
        """1-based epoch that the `step`-th step (from 1) belongs to."""
        return (step - 1) // self.steps_per_epoch + 1

    def ends_epoch(self, step: int) -> bool:
        return step % self.steps_per_epoch == 0 or step == self.max_steps


def is_due(count: int, every: int | None) -> bool:
    """Whether something that happens each `every` counts happens at this one; None is never."""
    return every is not None and count % every == 0
