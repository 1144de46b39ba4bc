"""What of a run goes into a checkpoint and comes back out of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from cn_clip.clip.weights import Checkpoint, Weights, state_for_file
from cn_clip.parallel.engines import Engine
from cn_clip.training.checkpoints.content import Captured, to_content
from cn_clip.training.checkpoints.position import Position


class Average(Protocol):
    """An average of weights over steps."""

    num_updates: int

    def state(self) -> dict[str, Tensor]:
        """Averages by the model's names, sharded as its parameters are."""
        ...

    def load(self, whole: Mapping[str, Tensor], num_updates: int) -> None:
        """Go on from whole averages, the same on every rank."""
        ...


@dataclass
class RunState:
    """A run's parts that a checkpoint holds. One for each stage."""

    name: str
    engine: Engine[Any]  # Any: whatever model it trains
    origin: Mapping[str, Any]
    """`settings` and `world_size` of the run: what `continuation.differences` compares; `Any`: plain settings."""
    average: Average | None = None
    merge: Callable[[Weights], Weights] = dict
    """Live weights to those of the published layout, adapters folded in; pure, and called in a thread of its own."""
    best: float | None = None
    """Value of `checkpoint.best` so far."""
    own_files: list[str] = field(default_factory=list)
    """Names of the files this run wrote for epochs and steps and has not deleted again, oldest first."""

    def capture(self, position: Position) -> Captured | None:
        """Copies on the CPU of all that goes on changing, on the main rank; None elsewhere. Collective."""
        live = self.engine.model_state()
        optimizer = self.engine.optimizer_state()
        average = None if self.average is None else self.engine.whole(self.average.state())
        if not self.engine.ranks.is_main:
            return None
        return Captured(
            name=self.name,
            position=position,
            live=_copied(live),
            average=_copied(average),
            num_updates=0 if self.average is None else self.average.num_updates,
            optimizer=_copied(state_for_file(optimizer, self.engine.module)),
            scaler=_copied(self.engine.precision.state_dict()),
            origin=self.origin,
            best=self.best,
            own_files=list(self.own_files),
        )

    def content(self, captured: Captured) -> Checkpoint:
        """The dict to be saved; takes time, but nothing that changes."""
        return to_content(captured, self.merge)


def _copied(value: Any) -> Any:  # Any: nested dicts and lists of tensors and numbers
    """The same with each tensor copied to the CPU."""
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
    if isinstance(value, Mapping):
        return {name: _copied(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_copied(inner) for inner in value)
    return value
