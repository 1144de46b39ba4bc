"""The data side of a run: opened sets of pairs, their order, and loaders of this rank's batches."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from cn_clip.clip.presets import image_preset, text_preset
from cn_clip.clip.tower_tokenizer import TowerTokenizer
from cn_clip.clip.transform import exact_transform, fast_transform, train_transform
from cn_clip.config.schema import Data, Part, TrainConfig
from cn_clip.data.batches import Collate
from cn_clip.data.captions import preprocess_text
from cn_clip.data.loader import PairDataset, PairLoader
from cn_clip.data.pairs import PairSource
from cn_clip.data.sampler import EpochOrder, MicroBatches, ValidationBatches
from cn_clip.parallel.ranks import Ranks
from cn_clip.training.build import module_of

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Sources:
    """Opened sets of pairs, before the model: a wrong path should not wait for one."""

    train: PairSource
    valid: PairSource | None


def open_sources(data: Data) -> Sources:
    """Sets of the settings; DataError for a path that is not one."""
    assert data.train is not None  # build_config refuses such settings
    return Sources(_source(data.train, "train"), _source(data.valid, "val") if data.valid else None)


def _source(chosen: Part, split: str) -> PairSource:
    source: PairSource = module_of("pairs", chosen.type).build(chosen.options)
    logger.info("%s LMDB file contains %d images and %d pairs.", split, source.num_images, len(source))
    return source


@dataclass(frozen=True)
class CaptionTokens:
    """Captions as stored -> token ids; the Chinese vocabulary gets them prepared as the published models did."""

    tokenizer: TowerTokenizer

    def __call__(self, captions: Sequence[str]) -> Tensor:
        if self.tokenizer.own is None:
            captions = [preprocess_text(caption) for caption in captions]
        return self.tokenizer(captions)


class TrainingData:
    """Order of the training pairs, and loaders for one rank; `valid` is None without validation pairs."""

    def __init__(self, config: TrainConfig, sources: Sources, ranks: Ranks, *, pad_id: int) -> None:
        self._config, self._sources, self._ranks = config, sources, ranks
        data, image_px = config.data, image_preset(config.model.image).image_px
        tokenizer = TowerTokenizer.of(text_preset(config.model.text), data.context_length, pad_id)
        self._collate = Collate(CaptionTokens(tokenizer), pad_id)
        self._read_for_training = train_transform(image_px, data.transform, data.augment)
        self._read = (exact_transform if data.transform == "exact" else fast_transform)(image_px)
        self.order = EpochOrder.over(
            len(sources.train),
            micro_global=config.train.batch_size * ranks.world_size,
            accumulate=config.train.accumulate,
            seed=config.run.seed,
            epoch_end=data.epoch_end,
        )
        self.valid = None if sources.valid is None else self._valid_loader(sources.valid)

    def train_loader(self, *, first_step: int, last_step: int) -> PairLoader:
        """This rank's micro-batches of steps [first_step, last_step)."""
        dataset = PairDataset(self._sources.train, self._read_for_training, self._config.run.seed)
        sampler = MicroBatches(
            self.order,
            rank=self._ranks.rank,
            world_size=self._ranks.world_size,
            batch_size=self._config.train.batch_size,
            first_step=first_step,
            last_step=last_step,
        )
        return self._loader(dataset, sampler, self._config.data.num_workers)

    def _valid_loader(self, source: PairSource) -> PairLoader:
        batch_size = self._config.validate.batch_size
        order = EpochOrder.over(
            len(source),
            micro_global=batch_size * self._ranks.world_size,
            accumulate=1,
            seed=self._config.run.seed,
        )
        sampler = ValidationBatches(
            order, rank=self._ranks.rank, world_size=self._ranks.world_size, batch_size=batch_size
        )
        dataset = PairDataset(source, self._read, self._config.run.seed)
        return self._loader(dataset, sampler, self._config.data.valid_num_workers)

    def _loader(
        self, dataset: PairDataset, sampler: MicroBatches | ValidationBatches, num_workers: int
    ) -> PairLoader:
        pin_memory = self._ranks.device.type == "cuda"
        return PairLoader(dataset, sampler, self._collate, num_workers=num_workers, pin_memory=pin_memory)
