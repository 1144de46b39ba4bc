"""From settings to the objects of a run: the only file that knows which room each of them comes from."""

from __future__ import annotations

import importlib
import logging
import pkgutil
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from cn_clip.clip.model import CLIP, build_model
from cn_clip.clip.precision import convert_weights
from cn_clip.clip.presets import image_preset, text_preset
from cn_clip.clip.tower_tokenizer import TowerTokenizer
from cn_clip.clip.transform import exact_transform, fast_transform, train_transform
from cn_clip.clip.weights import load_image_tower, load_into, load_text_tower, model_weights, read_checkpoint
from cn_clip.config.load import build, to_plain
from cn_clip.config.schema import Model, Part, Settings, TrainConfig
from cn_clip.data.batches import Collate
from cn_clip.data.captions import preprocess_text
from cn_clip.data.loader import PairDataset, PairLoader
from cn_clip.data.pairs import PairSource
from cn_clip.data.sampler import EpochOrder, MicroBatches, ValidationBatches
from cn_clip.errors import ConfigError
from cn_clip.parallel.precision import Precision
from cn_clip.parallel.ranks import Ranks
from cn_clip.parallel.rng import stable_seed
from cn_clip.parallel.wrap import ParallelModel, freeze

logger = logging.getLogger(__name__)

FOLDERS = {
    "pairs": "cn_clip.data.pairs",
    "augment": "cn_clip.clip.augment",
    "pair_loss": "cn_clip.losses.pair",
}
"""Registry folder of each kind of part."""


def module_of(kind: str, name: str) -> Any:  # Any: a module; its contract is in the folder's docstring
    """Module `name` of the registry folder of `kind`; ConfigError lists the folder when it has none."""
    folder = FOLDERS[kind]
    names = [found.name for found in pkgutil.iter_modules(importlib.import_module(folder).__path__)]
    if name not in names:
        raise ConfigError(
            f"there is no {kind.replace('_', ' ')} of type {name!r}; choose from {', '.join(names)}"
        )
    return importlib.import_module(f"{folder}.{name}")


def resolve_options(kind: str, name: str) -> type:
    """`Options` of a registry module."""
    options: type = module_of(kind, name).Options
    return options


def build_config(settings: Settings) -> TrainConfig:
    """Checked settings of a training run, towers' own defaults of the optimizer filled in."""
    config = build(TrainConfig, settings, resolve_options)
    if config.data.train is None:
        raise ConfigError(
            "data.train is not set: give the LMDB folder of the training pairs with --train-data (data.train.path)"
        )
    if config.distill.enabled:
        raise ConfigError(
            "distillation (distill.enabled, --distillation) is not in this version: train without it, or stay with "
            "cn-clip for that run"
        )
    own = image_preset(config.model.image).training
    plain = to_plain(config)
    for name in ("lr", "beta1", "beta2", "eps"):
        if plain["optim"][name] is None:
            plain["optim"][name] = getattr(own, name)
    return build(TrainConfig, plain, resolve_options)


def build_clip(settings: Model, seed: int) -> CLIP:
    """Model with the weights the settings name, fresh ones from `seed` where they name none."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(stable_seed(seed))
        model = build_model(settings.image, settings.text)
    if settings.image_weights:
        load_image_tower(model, settings.image_weights)
    if settings.text_weights:
        load_text_tower(model, settings.text_weights)
    if settings.recompute:
        model.set_grad_checkpointing()
        logger.info("Grad-checkpointing activated.")
    if settings.flash_attention:
        logger.info("Using FlashAttention.")
    if settings.mask_ratio > 0 and image_preset(settings.image).tower == "resnet":
        logger.info("Note: mask_ratio > 0 (FLIP) only works for ViT towers and does nothing for this ResNet.")
    return model


def initialise(model: CLIP, path: str) -> None:
    """Take the weights of both towers from a checkpoint file, and nothing else of it."""
    load_into(model, model_weights(read_checkpoint(path)), where=path)
    logger.info("Weights of both towers taken from '%s'.", path)


def frozen_parts(model: CLIP, settings: Model) -> list[nn.Module]:
    """Modules the settings take out of training, frozen."""
    if not settings.freeze_image:
        return []
    tower = cast(nn.Module, model.visual)  # every ImageTower is one; a Protocol cannot say so
    freeze(tower)
    logger.info("The visual encoder is freezed during training.")
    return [tower]


@dataclass(frozen=True)
class CaptionTokens:
    """Captions as stored -> token ids; the Chinese vocabulary gets them prepared as the published models did."""

    tokenizer: TowerTokenizer

    def __call__(self, captions: Sequence[str]) -> Tensor:
        if self.tokenizer.own is None:
            captions = [preprocess_text(caption) for caption in captions]
        return self.tokenizer(captions)


@dataclass(frozen=True)
class TrainingData:
    """Where training pairs come from and in which order, and the validation batches."""

    dataset: PairDataset
    order: EpochOrder
    collate: Collate
    valid: PairLoader | None


def build_data(config: TrainConfig, ranks: Ranks) -> TrainingData:
    data, image_px = config.data, image_preset(config.model.image).image_px
    collate = Collate(CaptionTokens(TowerTokenizer.of(text_preset(config.model.text), data.context_length)))
    assert data.train is not None  # build_config refuses such settings
    source = _source(data.train, "train")
    read = train_transform(image_px, data.transform, data.augment)
    order = EpochOrder.over(
        len(source),
        micro_global=config.train.batch_size * ranks.world_size,
        accumulate=config.train.accumulate,
        seed=config.run.seed,
        epoch_end=data.epoch_end,
    )
    valid = _valid_loader(config, ranks, image_px, collate) if data.valid else None
    return TrainingData(PairDataset(source, read, config.run.seed), order, collate, valid)


def train_loader(
    data: TrainingData, config: TrainConfig, ranks: Ranks, *, first_step: int, last_step: int
) -> PairLoader:
    """This rank's micro-batches of steps [first_step, last_step)."""
    sampler = MicroBatches(
        data.order,
        rank=ranks.rank,
        world_size=ranks.world_size,
        batch_size=config.train.batch_size,
        first_step=first_step,
        last_step=last_step,
    )
    return _loader(data.dataset, sampler, data.collate, config.data.num_workers, ranks)


def _valid_loader(config: TrainConfig, ranks: Ranks, image_px: int, collate: Collate) -> PairLoader:
    assert config.data.valid is not None
    source = _source(config.data.valid, "val")
    order = EpochOrder.over(
        len(source),
        micro_global=config.validate.batch_size * ranks.world_size,
        accumulate=1,
        seed=config.run.seed,
    )
    sampler = ValidationBatches(
        order, rank=ranks.rank, world_size=ranks.world_size, batch_size=config.validate.batch_size
    )
    read = (exact_transform if config.data.transform == "exact" else fast_transform)(image_px)
    dataset = PairDataset(source, read, config.run.seed)
    return _loader(dataset, sampler, collate, config.data.valid_num_workers, ranks)


def _source(chosen: Part, split: str) -> PairSource:
    source: PairSource = module_of("pairs", chosen.type).build(chosen.options)
    logger.info("%s LMDB file contains %d images and %d pairs.", split, source.num_images, len(source))
    return source


def _loader(
    dataset: PairDataset,
    sampler: MicroBatches | ValidationBatches,
    collate: Collate,
    num_workers: int,
    ranks: Ranks,
) -> PairLoader:
    pin_memory = ranks.device.type == "cuda"
    return PairLoader(dataset, sampler, collate, num_workers=num_workers, pin_memory=pin_memory)


def parallelize(model: CLIP, config: TrainConfig, precision: Precision, ranks: Ranks) -> ParallelModel[CLIP]:
    """Model in the run's number type, on the run's device, under the engine that joins its gradients."""
    if precision.weights_dtype is not torch.float32:
        convert_weights(model, precision.weights_dtype)
    return ParallelModel(model, config.parallel, ranks)
