"""A checkpoint read again, ours or the reference's, and given to the parts of a run one by one.

Weights go into the bare model before an engine wraps it; the rest into what was built around it.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cn_clip.clip.lora import is_adapter
from cn_clip.clip.model import CLIP
from cn_clip.clip.weights import (
    Checkpoint,
    Weights,
    load_into,
    model_weights,
    read_checkpoint,
    state_for_run,
)
from cn_clip.clip.weights.layouts import resize_pos_embed
from cn_clip.errors import WeightsError
from cn_clip.training.checkpoints.content import check_format, own_weights
from cn_clip.training.checkpoints.position import Position
from cn_clip.training.checkpoints.state import RunState

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class SavedRun:
    """A checkpoint file that says where its run stood."""

    path: Path
    position: Position
    origin: Mapping[str, Any]
    """`settings` and `world_size` of its run; nothing for one of the reference."""
    checkpoint: Checkpoint

    def load_weights(self, model: CLIP) -> None:
        """Give the bare model the weights that were trained; where adapters were, the weights with these merged in."""
        load_into(model, model_weights(self.checkpoint), where=str(self.path))
        live = own_weights(self.checkpoint, "live")
        if live is not None and not any(map(is_adapter, live)):
            self._load_live(model, live)

    def load_adapters(self, model: CLIP) -> None:
        """After `load_weights`, once adapters were added to the bare model: give it all that was trained as it was.

        Adapters of other settings stay merged into the weights, and the model's own are fresh.
        """
        live = own_weights(self.checkpoint, "live")
        if live is not None and any(map(is_adapter, live)):
            self._load_live(model, live)

    def _load_live(self, model: CLIP, live: Weights) -> None:
        resize_pos_embed(live, model)
        own = model.state_dict()
        misfit = [
            name
            for name in {*live, *own}
            if name not in live or name not in own or not _has_place(name, live[name], own[name])
        ]
        if misfit:
            logger.info(
                "The weights as they were trained do not fit this model (%s, ...): going on from those for use in %s, "
                "with adapters merged and averages taken.",
                min(misfit),
                self.path,
            )
        else:
            model.load_state_dict(live)

    @property
    def _kept(self) -> Mapping[str, Any]:
        return self.checkpoint.get("cn_clip", {})

    def load_training(self, state: RunState, *, keep_settings: bool = False) -> None:
        """Give back the optimizer, the gradient scaler, the average, and what the run has kept so far.

        The optimizer's settings (decay, betas) are the file's, or with `keep_settings` stay this run's.
        """
        if "optimizer" not in self.checkpoint:
            raise WeightsError(
                f"{self.path} has no optimizer state: add --reset-optimizer (run.reset_optimizer=true), or start from "
                "its weights with model.init_from"
            )
        engine = state.engine
        found = state_for_run(
            self.checkpoint["optimizer"],
            engine.optimizer.param_groups,
            engine.module,
            engine.shapes(),
            keep_settings=keep_settings,
        )
        engine.load_optimizer_state(found)
        engine.precision.load_state_dict(self.checkpoint.get("scaler", {}))
        logger.info("=> optimizer state is restored from the checkpoint")
        average = own_weights(self.checkpoint, "average")
        if state.average is not None and average is not None:
            resize_pos_embed(average, engine.module)
            state.average.load(average, self._kept["num_updates"])
        state.best = self._kept.get("best")

    def say_loaded(self, step: int) -> None:
        """The reference's line: the run goes on with `step` steps done."""
        logger.info("=> loaded checkpoint '%s' (epoch %d @ %d steps)", self.path, self.position.epoch, step)

    @property
    def own_files(self) -> list[str]:
        """Names beside this file that its run wrote for epochs and steps, oldest first."""
        return list(self._kept.get("own_files", ()))


def read_saved(path: Path) -> SavedRun:
    """A checkpoint to go on from; WeightsError for a file of weights only, or one of a newer program."""
    logger.info("=> begin to load checkpoint '%s'", path)
    checkpoint = read_checkpoint(path)
    check_format(checkpoint, str(path))
    ours = checkpoint.get("cn_clip", {})
    return SavedRun(path, _position(checkpoint, path), ours, checkpoint)


def _has_place(name: str, tensor: Tensor, own: Tensor) -> bool:
    # what adapters count is a setting, which a file must not change
    is_setting = is_adapter(name) and tensor.dim() == 0
    return torch.equal(tensor, own.cpu()) if is_setting else tensor.shape == own.shape


def _position(checkpoint: Checkpoint, path: Path) -> Position:
    try:
        stage = int(checkpoint.get("cn_clip", {}).get("stage", 0))
        return Position(epoch=int(checkpoint["epoch"]), step=int(checkpoint["step"]), stage=stage)
    except (KeyError, TypeError, ValueError) as error:
        raise WeightsError(
            f"{path} does not say at which epoch and step it was saved: it holds weights only, so start from it with "
            "model.init_from"
        ) from error
