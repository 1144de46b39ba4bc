"""Where a run stands, and where it goes on from there."""

from __future__ import annotations

import logging
from dataclasses import dataclass

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Position:
    """Where a run stands."""

    epoch: int
    """1-based: of the epoch that `step` ends or stands in."""
    step: int
    """Optimizer steps done."""
    stage: int = 0
    """Number of the stage, from 0; steps and epochs count through all stages."""
    unvalidated: bool = False
    """The run was stopped before the validation that was due after this step: it comes first when it goes on."""


def steps_done(position: Position, steps_per_epoch: int) -> int:
    """Optimizer steps to skip when a run goes on from `position` with `steps_per_epoch`.

    A checkpoint of a run with as many steps per epoch continues at its very step, also inside an epoch. With another
    number (other batch size, data or accumulation) its step means nothing here, so it continues after its epoch.
    """
    first, last = (position.epoch - 1) * steps_per_epoch, position.epoch * steps_per_epoch
    if first < position.step <= last:
        return position.step
    logger.info(
        "The checkpoint's step %d is not in its epoch %d of %d steps here: going on after that epoch.",
        position.step,
        position.epoch,
        steps_per_epoch,
    )
    return last
