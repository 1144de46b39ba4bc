"""Layout of a checkpoint: from what a run holds to the dict that is saved, and back. Pure functions.

The weights to use are the run's own (*live*) ones, the average in place of those it averages, adapters merged. Of the live
and of the averaged tensors only those are kept beside them that are absent there or differ.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

import cn_clip
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


def to_content(captured: Captured, merge: Callable[[Weights], Weights]) -> Checkpoint:
    """The dict that is saved; `merge` gives the published layout of live weights, adapters folded in."""
    live, average = captured.live, captured.average
    usable = merge(dict(live) if average is None else dict(live) | _as(live, average))
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
            "unvalidated": captured.position.unvalidated,
            "best": captured.best,
            "own_files": captured.own_files,
            "live": _beside(usable, live),
            "average": None if average is None else _beside(usable, average),
            "num_updates": captured.num_updates,
        },
    }


def _as(live: Weights, average: Weights) -> Weights:
    """Averages in the number types of what they average."""
    return {name: tensor.to(live[name].dtype) for name, tensor in average.items()}


def _beside(usable: Weights, own: Weights) -> dict[str, Any]:
    """What `own` cannot be told from `usable` without."""
    return {
        "differ": {name: tensor for name, tensor in own.items() if not _same(usable.get(name), tensor)},
        "names": list(own),
    }


def _same(one: Tensor | None, other: Tensor) -> bool:
    """Bit by bit: 0.0 equals -0.0, and yet a run that goes on from the other may differ."""
    if one is None or one.dtype != other.dtype or one.shape != other.shape:
        return False
    return torch.equal(*(tensor.contiguous().flatten().view(torch.uint8) for tensor in (one, other)))


def own_weights(checkpoint: Checkpoint, kind: str) -> Weights | None:
    """The `live` or `average` tensors of a checkpoint; None where it keeps none beside `state_dict`."""
    kept = checkpoint.get("cn_clip", {}).get(kind)
    if not kept:
        return None
    usable: Weights = checkpoint["state_dict"]
    try:
        return {
            name: kept["differ"][name] if name in kept["differ"] else usable[PREFIX + name]
            for name in kept["names"]
        }
    except (KeyError, TypeError) as error:
        raise WeightsError(
            f"the checkpoint's entries do not belong together (state_dict and its cn_clip entry, at {error}): another program "
            "changed it, so start from its weights with model.init_from"
        ) from error


def check_format(checkpoint: Checkpoint, where: str) -> None:
    """WeightsError for a file of a newer program, from which this one could go on only in part, and for another's."""
    ours = checkpoint.get("cn_clip", {})
    if not isinstance(ours, Mapping) or not isinstance(ours.get("format", 1), int):
        raise WeightsError(
            f"{where} has a `cn_clip` entry that no version of cn_clip writes: start from its weights with model.init_from"
        )
    written = ours.get("format", 1)
    if written > FORMAT:
        raise WeightsError(
            f"{where} was written by cn_clip {ours.get('version')} in format {written}, newer than {FORMAT}, "
            "which is this version's: install that version to go on, or start from its weights with model.init_from"
        )
