"""Share of image patches left out in training (FLIP, arXiv:2212.00794), as a pure function of the step."""

from __future__ import annotations

import math
from dataclasses import dataclass

from cn_clip.config.schema import Model


@dataclass(frozen=True)
class MaskSchedule:
    """Mask ratio of each step of a stage of `total_steps`: a masked part, then a tail on whole pictures."""

    settings: Model
    total_steps: int

    @property
    def masked_steps(self) -> int:
        """Steps of the masked part; at least one where anything is masked and there is a step at all."""
        tail = round(self.settings.unmasked_share * self.total_steps)
        return min(max(self.total_steps - tail, 1), self.total_steps)

    def ratio(self, step: int) -> float:
        """Of the optimizer step `step`, counted from 1 in its stage."""
        peak, done = self.settings.mask_ratio, (step - 1) / max(self.masked_steps, 1)
        if peak == 0 or done >= 1:
            return 0.0
        if self.settings.mask_schedule == "linear":
            return peak * (1 - done)
        if self.settings.mask_schedule == "cosine":
            return peak * 0.5 * (1 + math.cos(math.pi * done))
        return peak
