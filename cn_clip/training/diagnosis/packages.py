"""Packages that the chosen settings need, beside those that are always installed."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass

from cn_clip.config.schema import TrainConfig
from cn_clip.errors import ConfigError
from cn_clip.parallel.engines.zero_settings import check_precision, deepspeed_settings
from cn_clip.parallel.precision import Precision
from cn_clip.parallel.ranks import Ranks
from cn_clip.training.boards import check_boards
from cn_clip.training.teachers import MODELSCOPE


@dataclass(frozen=True)
class Need:
    """A package that a setting asks for."""

    package: str
    setting: str
    install: str


def needs(config: TrainConfig) -> list[Need]:
    """Packages to be there for this config."""
    found = []
    if config.parallel.engine.startswith("zero"):
        setting = f"parallel.engine={config.parallel.engine}"
        found.append(Need("deepspeed", setting, "pip install 'cn_clip[deepspeed]'"))
    if config.lora.image_rank or config.lora.text_rank:
        found.append(Need("peft", "lora", "pip install peft"))
    if config.log.tensorboard:
        found.append(
            Need("tensorboard", "log.tensorboard", "pip install tensorboard, or set log.tensorboard=false")
        )
    if config.distill.enabled and config.distill.teacher in MODELSCOPE:
        found.append(
            Need("modelscope", f"distill.teacher={config.distill.teacher}", "pip install modelscope")
        )
    return found


def check_packages(config: TrainConfig, ranks: Ranks) -> list[str]:
    """Names of the packages that are needed and there; ConfigError for the first one that is not."""
    check_boards(config.log)
    for need in needs(config):
        if importlib.util.find_spec(need.package) is None:
            raise ConfigError(
                f"{need.setting} needs the package {need.package}, which is not installed: {need.install}"
            )
    if config.parallel.engine.startswith("zero"):
        precision = Precision(config.train.precision, ranks.device)
        check_precision(config.parallel, precision)
        deepspeed_settings(config.parallel, precision)  # reads the user's JSON
    return [need.package for need in needs(config)] + (["wandb"] if config.log.wandb else [])
