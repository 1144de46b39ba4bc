"""What a trainer needs to know of what it trains: nothing but this."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from torch import nn

from cn_clip.data.batches import PairBatch


@dataclass(frozen=True)
class StepReport:
    """What one optimizer step saw, over the whole global batch."""

    loss: float
    """Nats."""
    image_to_text_accuracy: float
    """Share of pictures that find their caption first among those of the global batch."""
    text_to_image_accuracy: float
    """Share of captions that find their picture first."""
    logit_scale: float
    """The parameter: the logarithm of the factor of the cosine."""

    def with_scale(self, logit_scale: float) -> StepReport:
        """The same report with the scale as it is after the step."""
        return replace(self, logit_scale=logit_scale)


class Task(Protocol):
    """A model, its loss, and how a global batch becomes gradients."""

    @property
    def module(self) -> nn.Module:
        """The bare model: what is saved."""
        ...

    def accumulate_gradients(self, batches: Sequence[PairBatch], step: int) -> StepReport:
        """Add the gradients of the mean loss over the global batch whose micro-batches of this rank are given."""
        ...

    def after_step(self) -> float:
        """What follows an optimizer step; returns the logit scale."""
        ...

    def train_mode(self) -> None:
        """Put the model into training mode, frozen parts excepted."""
        ...
