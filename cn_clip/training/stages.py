"""Stages of a run: settings that change at a step, each stage with the whole config it trains under.

`stages: [{name: locked, epochs: 2, model: {freeze_image: true}}, {name: open, epochs: 8, optim: {lr: 1e-5}}]`: what a stage
says is laid over the run's settings, so each one says only what it changes. Steps and epochs count through all stages.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cn_clip.config.load import lay_over, to_plain
from cn_clip.config.schema import Settings, TrainConfig
from cn_clip.errors import ConfigError

OWN_NAMES = ("name", "epochs", "steps")
OF_THE_RUN = ("run", "checkpoint", "log", "stages")
"""Sections that hold for the whole run."""
ONE_TOWER = ("image", "text", "init_from", "image_weights", "text_weights")
"""Settings of `model` that say what the run begins with."""


@dataclass(frozen=True)
class Stage:
    """A part of a run under one config."""

    number: int
    """From 0."""
    name: str
    config: TrainConfig
    """Its `train.max_steps` or `train.max_epochs` are the stage's own length."""


def stages_of(config: TrainConfig, build_config: Callable[[Settings], TrainConfig]) -> list[Stage]:
    """The stages of a config, a config without any being one stage. ConfigError names the stage that is wrong."""
    if not config.stages:
        return [Stage(0, "", config)]
    if not config.checkpoint.enabled:
        raise ConfigError("stages hand over by checkpoints: leave checkpoint.enabled on (no --logs None)")
    plain = to_plain(config) | {"stages": []}
    found = []
    for number, own in enumerate(config.stages):
        try:
            found.append(Stage(number, _name(own, number), build_config(_settings(plain, own))))
        except ConfigError as error:
            raise ConfigError(f"stages[{number}]: {error}") from error
    _check_names(found)
    _check_optimizers(found)
    return found


def _settings(plain: Settings, own: Mapping[str, Any]) -> Settings:  # Any: plain settings
    steps, epochs = own.get("steps"), own.get("epochs")
    if (steps is None) == (epochs is None):
        raise ConfigError("give either `steps` or `epochs`: how long the stage is")
    changes = {name: value for name, value in own.items() if name not in OWN_NAMES}
    for name in changes:
        if name in OF_THE_RUN:
            raise ConfigError(f"{name} holds for the whole run; set it outside the stages")
    for name in changes.get("model", {}) if isinstance(changes.get("model"), Mapping) else ():
        if name in ONE_TOWER:
            raise ConfigError(f"model.{name} is what the run begins with; set it outside the stages")
    length = {"max_steps": steps} if steps is not None else {"max_steps": None, "max_epochs": epochs}
    return lay_over(lay_over(plain, changes), {"train": length})


def _name(own: Mapping[str, Any], number: int) -> str:  # Any: plain settings
    return str(own.get("name", f"stage {number + 1}"))


def _check_names(stages: Sequence[Stage]) -> None:
    names = [stage.name for stage in stages]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"two stages have the name {name!r}: give each one of its own")


def _check_optimizers(stages: Sequence[Stage]) -> None:
    first = stages[0].config.optim.type
    for stage in stages:
        if stage.config.optim.type != first:
            raise ConfigError(
                f"stages[{stage.number}]: optim.type is {stage.config.optim.type}, that of the first stage {first}: the "
                "optimizer's state is handed over, so set one type outside the stages"
            )
