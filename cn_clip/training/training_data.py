"""The data side of a run: opened sets of pairs, their order, and loaders of this rank's batches."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from cn_clip.clip.presets import image_preset, text_preset
from cn_clip.clip.tower_tokenizer import TowerTokenizer
from cn_clip.clip.transform import BytesTransform, exact_transform, fast_transform, train_transform
from cn_clip.config.schema import Data, Part, TrainConfig
from cn_clip.data.batches import Collate
from cn_clip.data.captions import preprocess_text
from cn_clip.data.feature_store import FeatureStore
from cn_clip.data.loader import PairLoader, Workers
from cn_clip.data.pair_dataset import PairDataset, ReadPair, StreamBatches
from cn_clip.data.pairs import PairSource, PairStream
from cn_clip.data.sampler import EpochOrder, ListedBatches, MicroBatches, PairKey, ValidationBatches
from cn_clip.data.unique_order import UniqueOrder
from cn_clip.errors import CnClipError, ConfigError
from cn_clip.parallel.gather import from_main
from cn_clip.parallel.ranks import Ranks
from cn_clip.training.registry import module_of

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Sources:
    """Opened sets of pairs, before the model: a wrong path should not wait for one."""

    train: PairSource | PairStream
    valid: Mapping[str, PairSource]
    """By name; the set of `data.valid` has the name ""."""


def open_sources(data: Data, ranks: Ranks) -> Sources:
    """Sets of the settings; DataError for a path that is not one, ConfigError for a set that cannot serve here."""
    assert data.train is not None  # build_config refuses such settings
    train = _source(data.train, "train", ranks)
    if isinstance(train, PairStream) and data.sampler != "shuffled":
        raise ConfigError(
            f"data.sampler={data.sampler} needs pairs that can be read in any order, but data.train.type={data.train.type} "
            "is a stream: set data.sampler=shuffled, or import the set into an LMDB"
        )
    chosen = {"": data.valid} if data.valid else {}
    valid = {
        name: _valid_source(name, part, ranks) for name, part in (chosen | dict(data.valid_sets)).items()
    }
    return Sources(train, valid)


def _valid_source(name: str, chosen: Part, ranks: Ranks) -> PairSource:
    source = _source(chosen, f"val {name}" if name else "val", ranks)
    if isinstance(source, PairStream):
        setting = f"data.valid_sets.{name}" if name else "data.valid"
        raise ConfigError(
            f"{setting} is a stream, but validation goes through its pairs in a fixed order: import them into an LMDB"
        )
    return source


def _source(chosen: Part, split: str, ranks: Ranks) -> PairSource | PairStream:
    source = _opened(chosen, ranks)
    num_pairs = source.num_pairs if isinstance(source, PairStream) else len(source)
    kind = "LMDB file" if chosen.type == "lmdb_pairs" else chosen.type
    logger.info("%s %s contains %d images and %d pairs.", split, kind, source.num_images, num_pairs)
    return source


def _opened(chosen: Part, ranks: Ranks) -> PairSource | PairStream:
    """A stream is opened by the main rank, which may count every sample for it, and handed on; an LMDB by each rank."""

    opened: PairSource | PairStream | None = None
    stream: PairStream | CnClipError | None = None
    if ranks.is_main:
        try:
            opened = _built(chosen)
            stream = opened if isinstance(opened, PairStream) else None
        except CnClipError as error:
            # handed on too: the others wait for this rank
            stream = error
    stream = from_main(stream, ranks)
    if isinstance(stream, CnClipError):
        raise stream
    if stream is not None:
        return stream
    return _built(chosen) if opened is None else opened


def _built(chosen: Part) -> PairSource | PairStream:
    built: PairSource | PairStream = module_of("pairs", chosen.type).build(chosen.options)
    return built


@dataclass(frozen=True)
class CaptionTokens:
    """Captions as stored -> token ids; the Chinese vocabulary gets them prepared as the published models did."""

    tokenizer: TowerTokenizer

    @property
    def fingerprint(self) -> str | None:
        return self.tokenizer.fingerprint

    def __call__(self, captions: Sequence[str]) -> Tensor:
        if self.tokenizer.own is None:
            captions = [preprocess_text(caption) for caption in captions]
        return self.tokenizer(captions)

    def from_ids(self, captions: Sequence[NDArray[np.uint16]]) -> Tensor:
        return self.tokenizer.from_ids(captions)


def order_of(
    config: TrainConfig, source: PairSource | PairStream, ranks: Ranks, *, epochs_before: int = 0
) -> EpochOrder:
    """The order of the training pairs of one stage, after `epochs_before` of earlier ones."""
    order = EpochOrder.over(
        source.num_pairs if isinstance(source, PairStream) else len(source),
        micro_global=config.train.batch_size * ranks.world_size,
        accumulate=config.train.accumulate,
        seed=config.run.seed,
        epoch_end=config.data.epoch_end,
        epochs_before=epochs_before,
    )
    if config.data.sampler == "unique" and isinstance(source, PairSource):
        return UniqueOrder.of(order, source)
    return order


class TrainingData:
    """Loaders for one rank of the training pairs in their order, and of the validation sets by name."""

    def __init__(
        self, config: TrainConfig, sources: Sources, order: EpochOrder, ranks: Ranks, *, pad_id: int
    ) -> None:
        self._config, self._sources, self._ranks, self.order = config, sources, ranks, order
        data, image_px = config.data, config.model.image_px or image_preset(config.model.image).image_px
        tokenizer = TowerTokenizer.of(text_preset(config.model.text), data.context_length, pad_id)
        self._collate = Collate(CaptionTokens(tokenizer), pad_id, data.hard_negatives)
        self._read_for_training = self._read_pair(
            train_transform(image_px, data.transform, data.augment), mask_copies=data.epoch_end == "pad"
        )
        read = (exact_transform if data.transform == "exact" else fast_transform)(image_px)
        self._read = self._read_pair(read)
        self.valid = {name: self._valid_loader(source) for name, source in sources.valid.items()}

    def train_loader(
        self, *, first_step: int, last_step: int, features: FeatureStore | None = None
    ) -> PairLoader:
        """This rank's micro-batches of steps [first_step, last_step), counted from the order's own beginning.

        `features` of the pictures are read in their place.
        """
        config, source = self._config, self._sources.train
        if isinstance(source, PairStream):
            batches = StreamBatches(
                stream=source,
                read=self._read_for_training,
                collate=self._collate,
                order=self.order,
                rank=self._ranks.rank,
                world_size=self._ranks.world_size,
                batch_size=config.train.batch_size,
                first_step=first_step,
                last_step=last_step,
                replace_bad=config.data.bad_pairs == "skip",
            )
            workers = self._workers(config.data.num_workers)
            return PairLoader.streamed(batches, workers, max_bad_share=self._max_bad_share)
        sampler = MicroBatches(
            self.order,
            rank=self._ranks.rank,
            world_size=self._ranks.world_size,
            batch_size=config.train.batch_size,
            first_step=first_step,
            last_step=last_step,
        )
        read = replace(self._read_for_training, features=features)
        return self._sampled(source, read, sampler, config.data.num_workers)

    def picture_loader(self, batches: Sequence[Sequence[int]]) -> PairLoader:
        """Training pictures as `train_loader` gives them, of pairs by their index in the source; with their captions."""
        source = self._sources.train
        assert isinstance(source, PairSource)
        keys = [[PairKey(0, index, index) for index in batch] for batch in batches]
        read = replace(self._read_for_training, num_negatives=0)
        return self._sampled(source, read, ListedBatches(keys), self._config.data.num_workers)

    def _read_pair(self, read_image: BytesTransform, *, mask_copies: bool = True) -> ReadPair:
        return ReadPair(
            read_image=read_image,
            seed=self._config.run.seed,
            tokenizer=self._collate.tokenizer.fingerprint,
            num_negatives=self._config.data.hard_negatives,
            mask_copies=mask_copies,
        )

    def _valid_loader(self, source: PairSource) -> PairLoader:
        batch_size = self._config.validate.batch_size
        if len(source) < batch_size * self._ranks.world_size:
            logger.warning(
                "Validation has %d pairs, fewer than one batch of %d: some count twice in it, against each other. "
                "Lower validate.batch_size (--valid-batch-size).",
                len(source),
                batch_size * self._ranks.world_size,
            )
        order = EpochOrder.over(
            len(source),
            micro_global=batch_size * self._ranks.world_size,
            accumulate=1,
            seed=self._config.run.seed,
        )
        sampler = ValidationBatches(
            order, rank=self._ranks.rank, world_size=self._ranks.world_size, batch_size=batch_size
        )
        return self._sampled(source, self._read, sampler, self._config.data.valid_num_workers, by_place=True)

    def _sampled(
        self,
        source: PairSource,
        read: ReadPair,
        sampler: MicroBatches | ValidationBatches | ListedBatches,
        num_workers: int,
        *,
        by_place: bool = False,
    ) -> PairLoader:
        data = self._config.data
        return PairLoader.sampled(
            PairDataset(source, read, replace_bad=data.bad_pairs == "skip", by_place=by_place),
            sampler,
            self._collate,
            self._workers(num_workers),
            max_bad_share=self._max_bad_share,
        )

    @property
    def _max_bad_share(self) -> float | None:
        data = self._config.data
        return data.max_bad_share if data.bad_pairs == "skip" else None

    def _workers(self, num: int) -> Workers:
        return Workers(
            num=num, prefetch=self._config.data.prefetch, pin_memory=self._ranks.device.type == "cuda"
        )
