"""What a run leaves as it is: a tower, or the first blocks of one with what stands before them."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from torch import nn

from cn_clip.clip.lora import is_adapter
from cn_clip.clip.model import CLIP
from cn_clip.config.schema import Lora, Model
from cn_clip.errors import ConfigError
from cn_clip.towers.image import ImageTower
from cn_clip.towers.text import TextTower
from cn_clip.training.tower_layers import image_depths, text_depths

logger = logging.getLogger(__name__)


def check_freezing(settings: Model, lora: Lora | None = None) -> None:
    """ConfigError where the settings leave nothing to train, or freeze what they add."""
    if settings.freeze_image and settings.freeze_text:
        raise ConfigError(
            "model.freeze_image and model.freeze_text together leave nothing but the scale to train: unset one of them"
        )
    lora = lora or Lora()
    for kind, is_frozen, rank in (
        ("image", settings.freeze_image, lora.image_rank),
        ("text", settings.freeze_text, lora.text_rank),
    ):
        if is_frozen and rank > 0:
            raise _frozen_adapters(kind)


def _frozen_adapters(kind: str) -> ConfigError:
    return ConfigError(
        f"lora.{kind}_rank trains adapters in the {kind} tower, which model.freeze_{kind} freezes: unset one of them"
    )


def check_blocks(model: CLIP, settings: Model) -> None:
    """ConfigError where more blocks are to be frozen than a tower has."""
    for kind, tower, num_blocks in (
        ("image", model.visual, settings.freeze_image_blocks),
        ("text", model.bert, settings.freeze_text_blocks),
    ):
        has_blocks = len(tower.blocks())
        if num_blocks > has_blocks:
            raise ConfigError(
                f"model.freeze_{kind}_blocks is {num_blocks}, but the {kind} tower has {has_blocks} blocks: "
                f"set it to {has_blocks} or less, or freeze the whole tower with model.freeze_{kind}=true"
            )


def freeze_towers(model: CLIP, settings: Model) -> list[nn.Module]:
    """Take what the settings name out of training; returns the frozen modules, whose BatchNorm keeps its statistics.

    Call it on the bare model, after adapters were added: those of a frozen block stay what they are, which is zero.
    """
    check_freezing(settings)
    check_blocks(model, settings)
    frozen = _freeze(
        model, model.visual, image_depths(model), settings.freeze_image, settings.freeze_image_blocks
    )
    if settings.freeze_image:
        logger.info("The visual encoder is freezed during training.")
    frozen += _freeze(
        model, model.bert, text_depths(model), settings.freeze_text, settings.freeze_text_blocks
    )
    if settings.freeze_text:
        logger.info("The text encoder is frozen during training.")
    return frozen


def _freeze(
    model: CLIP, tower: ImageTower | TextTower, depth_of: Mapping[str, int], whole: bool, num_blocks: int
) -> list[nn.Module]:
    """Freeze a tower's parameters up to a depth; returns the largest modules in which nothing is trained."""
    kind = "image" if tower is model.visual else "text"
    if not whole and num_blocks == 0:
        return []
    if whole and any(is_adapter(name) for name in depth_of):
        raise _frozen_adapters(kind)
    if not whole:
        logger.info("The first %d blocks of the %s tower are frozen during training.", num_blocks, kind)
    parameters = dict(model.named_parameters())
    for name, depth in depth_of.items():
        if whole or depth <= num_blocks:
            parameters[name].requires_grad_(False)
    assert isinstance(tower, nn.Module)  # every tower is one; a Protocol cannot say so
    return _untrained(tower)


def _untrained(module: nn.Module) -> list[nn.Module]:
    parameters = list(module.parameters())
    if parameters and not any(parameter.requires_grad for parameter in parameters):
        return [module]
    return [found for child in module.children() for found in _untrained(child)]
