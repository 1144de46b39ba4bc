"""From settings to the checked config, the registry modules and the model of a run."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import cast

import torch
from torch import nn

from cn_clip.clip.model import CLIP, build_model
from cn_clip.clip.precision import convert_weights
from cn_clip.clip.presets import image_preset, text_preset
from cn_clip.clip.weights import load_image_tower, load_into, load_text_tower, model_weights
from cn_clip.config.load import build, to_plain
from cn_clip.config.schema import Model, Part, Settings, TrainConfig
from cn_clip.data.pairs import PairSource
from cn_clip.errors import ConfigError
from cn_clip.losses.pair import PairLoss, sigmoid
from cn_clip.parallel.engines import Engine
from cn_clip.parallel.precision import Precision
from cn_clip.parallel.ranks import Ranks
from cn_clip.parallel.rng import seeded, stable_seed
from cn_clip.parallel.wrap import wrap
from cn_clip.training.contrastive_task import ContrastiveTask
from cn_clip.training.distillation import Distillation
from cn_clip.training.encoding import Encoding
from cn_clip.training.mask_schedule import MaskSchedule
from cn_clip.training.registry import module_of, resolve_options
from cn_clip.training.stage_checks import check_stage
from cn_clip.training.stages import stages_of
from cn_clip.training.timeline import Leg
from cn_clip.training.unused_settings import check_engine_settings
from cn_clip.training.validation import check_recall

logger = logging.getLogger(__name__)


def build_config(settings: Settings) -> TrainConfig:
    """Checked settings of a training run, towers' own defaults of the optimizer filled in."""
    config = build(TrainConfig, settings, resolve_options)
    if config.data.train is None:
        raise ConfigError(
            "data.train is not set: give the LMDB folder of the training pairs with --train-data (data.train.path)"
        )
    _check_context_length(config)
    own = image_preset(config.model.image).training
    plain = to_plain(config)
    # timm's optimizers have averages and defaults of their own
    for name in ("lr", "beta1", "beta2", "eps") if config.optim.type == "adamw" else ("lr",):
        if plain["optim"][name] is None:
            plain["optim"][name] = getattr(own, name)
    checked = build(TrainConfig, plain, resolve_options)
    if checked.stages:
        stages_of(checked, build_config)  # each is checked with what it changes
    else:
        check_engine_settings(checked)
        check_recall(checked.validate)
        check_stage(checked)
    return checked


def _check_context_length(config: TrainConfig) -> None:
    longest = text_preset(config.model.text).options.get("max_positions")
    if longest is not None and config.data.context_length > longest:
        raise ConfigError(
            f"data.context_length is {config.data.context_length}, but {config.model.text} has positions for {longest} "
            f"tokens: set it to {longest} or less"
        )


def build_clip(settings: Model, seed: int, loss: Part | None = None, *, read_towers: bool = True) -> CLIP:
    """Model with the weights the settings name, fresh ones from `seed` where they name none.

    read_towers: off where a checkpoint brings all weights; the files of the towers may be gone by then.
    """
    with seeded(stable_seed(seed), torch.device("cpu")):
        model = build_model(settings.image, settings.text, settings.image_px)
    if loss is not None and isinstance(loss.options, sigmoid.Options):
        model.add_logit_bias(loss.options.initial_bias)
        nn.init.constant_(model.logit_scale, math.log(loss.options.initial_scale))
    if read_towers and settings.image_weights:
        load_image_tower(model, settings.image_weights)
    if read_towers and settings.text_weights:
        load_text_tower(model, settings.text_weights)
    if settings.mask_ratio > 0 and not model.visual.masks_patches:
        logger.warning(
            "model.mask_ratio (--mask-ratio) is %g, which does nothing here: the image tower %s leaves out no patches, only a "
            "ViT of ours does.",
            settings.mask_ratio,
            settings.image,
        )
    return model


def initialise(model: CLIP, path: str) -> None:
    """Take the weights of both towers from a checkpoint file, and nothing else of it."""
    load_into(model, model_weights(path), where=path)
    logger.info("Weights of both towers taken from '%s'.", path)


def _can_halve(config: TrainConfig, engine: Engine[CLIP]) -> bool:
    """Whether a rank that runs out of memory can tell the others, who wait for it inside a forward or backward pass else."""
    can = engine.passes_are_local and not config.parallel.sync_batchnorm
    if not can:
        logger.info(
            "Running out of memory ends this run: train.on_out_of_memory=halve needs parallel.engine=ddp or zero1, and no "
            "parallel.sync_batchnorm."
        )
    return can


def build_task(
    config: TrainConfig,
    leg: Leg,
    engine: Engine[CLIP],
    frozen: Sequence[nn.Module],
    distillation: Distillation | None,
) -> ContrastiveTask:
    """What a stage trains."""
    pair_loss: PairLoss = module_of("pair_loss", config.loss.type).build(config.loss.options)
    # a ratio that does nothing is none in the log, and leaves a picture that comes twice encoded once
    mask_ratio = config.model.mask_ratio if engine.module.visual.masks_patches else 0.0
    masks = MaskSchedule(replace(config.model, mask_ratio=mask_ratio), leg.num_steps)
    begin = leg.plan.begin
    encoding = Encoding(
        seed=config.run.seed,
        mask_ratio=lambda step: masks.ratio(step - begin),
        keyed=config.train.randomness == "pair",
        text_groups=config.train.text_groups,
        once=config.train.encode_once,
        # a tar may give two pictures one id; an LMDB refuses to
        same_pictures=config.data.augment.type == "none" and isinstance(leg.sources.train, PairSource),
        masks=mask_ratio > 0,
        longest=config.data.context_length,
        survives_shortage=config.train.on_out_of_memory == "halve" and _can_halve(config, engine),
    )
    options = config.loss.options
    return ContrastiveTask(engine, pair_loss, options, encoding, frozen=frozen, distillation=distillation)


def parallelize(model: CLIP, config: TrainConfig, precision: Precision, ranks: Ranks) -> Engine[CLIP]:
    """Model in the run's number type, on the run's device, under the engine that joins its gradients."""
    if precision.weights_dtype is not torch.float32:
        convert_weights(model, precision.weights_dtype)
    if config.model.channels_last:
        cast(nn.Module, model.visual).to(memory_format=torch.channels_last)
    if config.model.recompute:
        logger.info("Grad-checkpointing activated.")
    return wrap(
        model,
        config.parallel,
        precision,
        ranks,
        blocks=[*model.visual.blocks(), *model.bert.blocks()],
        recompute=config.model.recompute,
        compile=config.model.compile,
    )
