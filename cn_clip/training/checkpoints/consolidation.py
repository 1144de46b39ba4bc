"""A sharded checkpoint as the one file it would have been."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from cn_clip.clip.lora import merged
from cn_clip.clip.model import build_model
from cn_clip.clip.weights import Checkpoint, parameter_names, state_for_file
from cn_clip.files import write_atomically
from cn_clip.parallel.sharded_files import consolidate
from cn_clip.training.checkpoints.content import Captured, check_format, to_content
from cn_clip.training.checkpoints.saved import position_of
from cn_clip.training.checkpoints.saved_folder import AVERAGE


def write_whole(folder: Path, file: Path) -> Checkpoint:
    """Write the checkpoint of a folder of shards as a file that every program reads; returns what is in it."""
    content = whole_content(folder.resolve())
    write_atomically(file, lambda opened: torch.save(content, opened))
    return content


def whole_content(folder: Path) -> Checkpoint:
    """Needs room for the whole weights and optimizer state in memory."""
    found = consolidate(folder)
    facts = found["facts"]
    check_format(facts, str(folder))
    ours = facts["cn_clip"]
    average = {
        name.removeprefix(AVERAGE): tensor
        for name, tensor in found["more"].items()
        if name.startswith(AVERAGE)
    }
    captured = Captured(
        name=facts["name"],
        position=position_of(facts, folder),
        live=found["model"],
        average=average or None,
        num_updates=ours["num_updates"],
        optimizer=state_for_file(
            found["optimizer"], _in_order(found["optimizer"], ours["settings"]["model"])
        ),
        scaler=facts["scaler"],
        origin={name: ours[name] for name in ("settings", "world_size", "token", "plan") if name in ours},
        best=ours["best"],
    )
    return to_content(captured, merged)


class _Order(nn.Module):
    """Stands for a model of which only the parameters' names are asked."""

    def __init__(self, names: Sequence[str]) -> None:
        super().__init__()
        self._names = names

    def named_parameters(
        self, *args: Any, **kwargs: Any
    ) -> Iterator[tuple[str, nn.Parameter]]:  # Any: nobody gives any
        return ((name, nn.Parameter(torch.empty(0))) for name in self._names)


def _in_order(optimizer: dict[str, Any], settings: dict[str, Any]) -> nn.Module:  # Any: plain data
    """The model's own order of parameters, and after them what a stage had beside (adapters)."""
    with torch.device("meta"):
        names = parameter_names(build_model(settings["image"], settings["text"]))
    trained = [name for group in optimizer["param_groups"] for name in group["param_names"]]
    return _Order([*names, *(name for name in trained if name not in set(names))])
