"""How long a run is, and when what is due."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Plan:
    """One stage of a run, and where this process starts in it. Steps are optimizer steps; they and epochs count through
    all stages."""

    steps_per_epoch: int
    first_step: int
    """Steps done when this process starts."""
    max_steps: int
    """Steps of the whole run."""
    begin: int = 0
    """Steps before this stage."""
    end: int | None = None
    """Last step of this stage; None is that of the run."""
    epochs_before: int = 0
    """Epochs before this stage; one that was cut short counts."""

    @property
    def last_step(self) -> int:
        return self.max_steps if self.end is None else self.end

    @property
    def max_epochs(self) -> int:
        """Epochs up to the end of this stage."""
        return self.epochs_before + math.ceil((self.last_step - self.begin) / self.steps_per_epoch)

    def epoch_of(self, step: int) -> int:
        """1-based epoch that the `step`-th step (from 1) belongs to."""
        return self.epochs_before + (step - self.begin - 1) // self.steps_per_epoch + 1

    def done_in_epoch(self, step: int) -> int:
        """Steps of its epoch up to the `step`-th."""
        return (step - self.begin - 1) % self.steps_per_epoch + 1

    def ends_epoch(self, step: int) -> bool:
        return (step - self.begin) % self.steps_per_epoch == 0 or step == self.last_step


def is_due(count: int, every: int | None) -> bool:
    """Whether something that happens each `every` counts happens at this one; None is never."""
    return every is not None and count % every == 0
