"""What a checkpoint that was read again gives to the parts of a run, one by one, whatever it is stored as.

Weights go into the bare model before an engine wraps it; the rest into what was built around it.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cn_clip.clip.lora import is_adapter
from cn_clip.clip.model import CLIP
from cn_clip.clip.weights import Weights
from cn_clip.clip.weights.layouts import is_for_training_only, resize_pos_embed
from cn_clip.errors import WeightsError
from cn_clip.parallel.engines import Engine
from cn_clip.training.checkpoints.position import Position
from cn_clip.training.checkpoints.state import RunState

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class SavedRun(ABC):
    """A checkpoint that says where its run stood. Methods are called by every rank."""

    path: Path
    position: Position
    origin: Mapping[str, Any]
    """The `cn_clip` entry, with `settings` and `world_size` of its run; nothing for one of the reference."""

    @abstractmethod
    def load_weights(self, model: CLIP) -> None:
        """Give the bare model the weights that were trained; where adapters were, the weights with these merged in."""

    @abstractmethod
    def load_adapters(self, model: CLIP) -> None:
        """After `load_weights`, once adapters were added to the bare model: give it all that was trained as it was.

        Adapters of other settings stay merged into the weights, and the model's own are fresh.
        """

    @abstractmethod
    def load_training(self, state: RunState, *, keep_settings: bool = False) -> None:
        """Give back the optimizer, the gradient scaler and the average.

        The optimizer's settings (decay, betas) are the file's, or with `keep_settings` stay this run's.
        """

    @property
    def own_files(self) -> list[str]:
        """Names beside this one that its run wrote for epochs and steps, oldest first."""
        return list(self.origin.get("own_files", ()))

    def say_loaded(self, step: int) -> None:
        """The reference's line: the run goes on with `step` steps done."""
        logger.info("=> loaded checkpoint '%s' (epoch %d @ %d steps)", self.path, self.position.epoch, step)


def position_of(facts: Mapping[str, Any], path: Path) -> Position:
    """Where the run of a checkpoint's entries stood; WeightsError for one that does not say."""
    try:
        ours = facts.get("cn_clip", {})
        stage, unvalidated = int(ours.get("stage", 0)), bool(ours.get("unvalidated", False))
        return Position(int(facts["epoch"]), int(facts["step"]), stage, unvalidated)
    except (KeyError, TypeError, ValueError) as error:
        raise WeightsError(
            f"{path} does not say at which epoch and step it was saved: it holds weights only, so start from it with "
            "model.init_from"
        ) from error


DECIDING = ("weight_decay", "betas", "eps")
"""Settings of an optimizer's groups that a checkpoint brings; the learning rate is the schedule's."""


def warn_of_settings(found: Mapping[str, Any], engine: Engine[Any], path: Path) -> None:
    """Say which settings of this run do not hold, where the file's do; `found` has the groups of the engine's optimizer."""
    changed = [
        f"{name} {group[name]} (this run's settings say {own[name]})"
        for group, own in zip(found["param_groups"], engine.optimizer.param_groups, strict=True)
        for name in DECIDING
        if name in group and name in own and _plain(group[name]) != _plain(own[name])
    ]
    if changed and engine.ranks.is_main:
        logger.warning(
            "The optimizer's settings in %s hold, as in the reference: %s. With --reset-optimizer (run.reset_optimizer=true) "
            "this run's own do, and its averages start at zero.",
            path,
            ", ".join(dict.fromkeys(changed)),
        )


def _plain(value: Any) -> Any:  # Any: numbers, or lists of them where another program wrote the file
    return tuple(value) if isinstance(value, list) else value


def load_live(model: CLIP, live: Weights, path: Path) -> None:
    """Give a model, which has the weights with adapters merged in, all that fits as it was trained.

    Where it has other adapters, or none, those stay merged.
    """
    live = dict(live)
    resize_pos_embed(live, model)
    own = model.state_dict()
    fitting = {name for name in live if name in own and _has_place(name, live[name], own[name])}
    misfits = [name for name in {*live, *own} - fitting if not _is_beside(name)]
    if misfits:
        logger.info(
            "The adapters in %s are not those of this model (%s, ...): theirs are merged into the weights.",
            path,
            min(misfits),
        )
        fitting = set(filter(_is_beside, fitting))
    model.load_state_dict({name: live[name] for name in fitting}, strict=False)


def _is_beside(name: str) -> bool:
    """What a loss has in the model: a stage may drop it or begin it, and the towers' weights are the same."""
    return is_for_training_only(name) or name == "logit_bias"


def _has_place(name: str, tensor: Tensor, own: Tensor) -> bool:
    # what adapters count is a setting, which a file must not change
    is_setting = is_adapter(name) and tensor.dim() == 0
    return torch.equal(tensor, own.cpu()) if is_setting else tensor.shape == own.shape
