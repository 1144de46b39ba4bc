"""What a trainer needs to know of what it trains: nothing but this."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from torch import nn

from cn_clip.data.batches import PairBatch
from cn_clip.parallel.engines import Engine


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
    gradient_norm: float = 0.0
    """L2 norm of all gradients, before it is clipped."""
    applied: bool = True
    """False where the step was skipped, since a number was not finite."""
    notices: int = 0
    """Bits that any rank raised before the step."""
    numbers: Mapping[str, float] = field(default_factory=dict)
    """What else is known of the batch, by name, on steps that are logged."""
    suspects: Sequence[Mapping[str, float]] = ()
    """Pairs that may be each other's false negatives, of this rank, on steps that are logged."""

    def with_numbers(self, **numbers: float) -> StepReport:
        """The same report with further numbers."""
        return replace(self, numbers={**self.numbers, **numbers})

    def after(self, *, logit_scale: float, gradient_norm: float, applied: bool) -> StepReport:
        """The same report with what the optimizer step brought."""
        return replace(self, logit_scale=logit_scale, gradient_norm=gradient_norm, applied=applied)


class Task(Protocol):
    """A model under its engine, a loss, and how a global batch becomes gradients."""

    @property
    def engine(self) -> Engine[Any]:  # Any: no trainer asks for more than an `nn.Module`
        """The model and what applies its gradients."""
        ...

    @property
    def module(self) -> nn.Module:
        """The bare model: what is saved."""
        ...

    def accumulate_gradients(
        self, batches: Sequence[PairBatch], step: int, *, notices: int = 0, diagnose: bool = False
    ) -> StepReport:
        """Add the gradients of the mean loss over the global batch whose micro-batches of this rank are given.

        `notices` are bits to be told to every rank, in the report; `diagnose` asks for its `numbers` and `suspects`.
        """
        ...

    def after_step(self) -> float:
        """What follows an optimizer step; returns the logit scale."""
        ...

    def train_mode(self) -> None:
        """Put the model into training mode, frozen parts excepted."""
        ...
