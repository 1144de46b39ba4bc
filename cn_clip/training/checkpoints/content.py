"""Layout of a checkpoint: from what a run holds to the dict that is saved.

The weights to use are the run's own (*live*) ones, the average in place of those it averages, adapters merged. Of the live
and of the averaged tensors only those are kept beside them that these do not tell (`Adapters.difference`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import cn_clip
from cn_clip.clip.lora import Adapters
from cn_clip.clip.weights import Checkpoint, Weights
from cn_clip.errors import WeightsError
from cn_clip.training.checkpoints.position import Position

FORMAT = 2
"""Of the `cn_clip` entry: 2 may hold live or averaged weights beside `state_dict`, without which a program cannot go on."""

PREFIX = "module."
"""Before each name of `state_dict`, as the reference has it."""


@dataclass(frozen=True, kw_only=True)
class Captured:
    """A run at one position, on the CPU, in memory of its own."""

    name: str
    position: Position
    live: Weights
    average: Weights | None
    """Averages of live tensors, under their names."""
    num_updates: int
    """Steps that are in the average."""
    optimizer: Mapping[str, Any]
    """In the reference's order."""
    scaler: Mapping[str, Any]
    origin: Mapping[str, Any]
    """Settings and number of ranks of the run."""
    best: float | None
    own_files: list[str] = field(default_factory=list)


def to_content(captured: Captured, adapters: Adapters) -> Checkpoint:
    """The dict that is saved."""
    live, average = captured.live, captured.average
    usable = adapters.merged(live if average is None else {**live, **_as(live, average)})
    return {
        "epoch": captured.position.epoch,
        "step": captured.position.step,
        "name": captured.name,
        "state_dict": {PREFIX + name: tensor for name, tensor in usable.items()},
        "optimizer": captured.optimizer,
        "scaler": captured.scaler,
        "cn_clip": {
            "format": FORMAT,
            "version": cn_clip.__version__,
            **captured.origin,
            "stage": captured.position.stage,
            "best": captured.best,
            "own_files": captured.own_files,
            "live": adapters.difference(live, usable),
            "average": None if average is None else adapters.difference(average, usable),
            "num_updates": captured.num_updates,
        },
    }


def _as(live: Weights, average: Weights) -> Weights:
    """Averages in the number types of what they average."""
    return {name: tensor.to(live[name].dtype) for name, tensor in average.items()}


def check_format(checkpoint: Checkpoint, where: str) -> None:
    """WeightsError for a file of a newer program, from which this one could go on only in part."""
    written = checkpoint.get("cn_clip", {}).get("format", 1)
    if written > FORMAT:
        raise WeightsError(
            f"{where} was written by cn_clip {checkpoint['cn_clip'].get('version')} in format {written}, newer than {FORMAT}, "
            "which is this version's: install that version to go on, or start from its weights with model.init_from"
        )
