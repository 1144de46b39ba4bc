"""A sharded checkpoint: what is written into its folder beside the engine's parts, and how it is read again.

Its facts are the entries of a whole file but `state_dict` and `optimizer`. Weights are the live ones; averages are beside.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

import cn_clip
from cn_clip.clip.lora import is_adapter, merged
from cn_clip.clip.model import CLIP
from cn_clip.clip.weights import load_into, state_for_run
from cn_clip.parallel import sharded_files
from cn_clip.parallel.sharded_index import read_index
from cn_clip.training.checkpoints.content import FORMAT
from cn_clip.training.checkpoints.position import Position
from cn_clip.training.checkpoints.saved import SavedRun, load_live, warn_of_settings
from cn_clip.training.checkpoints.state import RunState

logger = logging.getLogger(__name__)

AVERAGE = "average."
"""Begins the names of averages in the folder."""


@dataclass(frozen=True)
class SavedFolder(SavedRun):
    facts: Mapping[str, Any]

    def load_weights(self, model: CLIP) -> None:
        live = sharded_files.read_weights(self.path)
        load_into(model, merged(live), where=str(self.path))
        # names of another layout have been taken care of: what was merged is in the model's
        if not any(map(is_adapter, live)):
            load_live(model, live, self.path)

    def load_adapters(self, model: CLIP) -> None:
        # the names first: to read all weights once more is dear
        if any(map(is_adapter, read_index(self.path)["tensors"])):
            load_live(model, sharded_files.read_weights(self.path), self.path)

    def load_training(self, state: RunState, *, keep_settings: bool = False) -> None:
        engine = state.engine
        found = state_for_run(
            sharded_files.read_optimizer(self.path, engine),
            engine.optimizer.param_groups,
            engine.module,
            engine.shapes(),
            keep_settings=keep_settings,
        )
        if not keep_settings:
            warn_of_settings(found, engine, self.path)
        engine.load_optimizer_state(found)
        engine.precision.load_state_dict(self.facts["scaler"])
        logger.info("=> optimizer state is restored from the checkpoint")
        if state.average is not None:
            self._load_average(state)

    def _load_average(self, state: RunState) -> None:
        """Into the averages' own memory, each rank its part; a parameter without an average here keeps its fresh one."""
        assert state.average is not None
        sizes = {name: entry["size"] for name, entry in read_index(self.path)["tensors"].items()}
        averages = {AVERAGE + name: tensor for name, tensor in state.average.state().items()}
        known = {name: t for name, t in averages.items() if sizes.get(name) == list(t.shape)}
        if known:
            sharded_files.read_into(self.path, known)
            state.average.num_updates = self.origin["num_updates"]


def save_folder(
    folder: Path, state: RunState, position: Position, *, asynchronous: bool
) -> sharded_files.Pending:
    """Begin to write a run into a folder. Collective."""
    average = state.average
    facts = {
        "epoch": position.epoch,
        "step": position.step,
        "name": state.name,
        "scaler": state.engine.precision.state_dict(),
        "cn_clip": {
            "format": FORMAT,
            "version": cn_clip.__version__,
            **state.origin,
            "stage": position.stage,
            "unvalidated": position.unvalidated,
            "best": state.best,
            "own_files": list(state.own_files),
            "num_updates": 0 if average is None else average.num_updates,
        },
    }
    more: dict[str, Tensor] = {}
    if average is not None:
        more = {AVERAGE + name: tensor for name, tensor in average.state().items()}
    return sharded_files.save(folder, state.engine, facts, more=more, asynchronous=asynchronous)
