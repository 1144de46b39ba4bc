"""Pairs read from where they are stored and made ready: by index, or as a stream gives them."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from torch import Tensor
from torch.utils.data import Dataset, IterableDataset, get_worker_info

from cn_clip.data.batches import Collate, Pair, PairBatch
from cn_clip.data.feature_store import FeatureStore
from cn_clip.data.pairs import BadPair, PairSource, PairStream, RawPair
from cn_clip.data.randomness import seeded_by
from cn_clip.data.sampler import EpochOrder, PairKey
from cn_clip.errors import DataError
from cn_clip.parallel.rng import stable_seed

ReadImage = Callable[[bytes], Tensor]
"""An encoded picture -> (C, H, W); raises DataError when it cannot be decoded."""
MAX_REPLACEMENTS = 8
"""Pairs tried in the place of one that cannot be read; more in a row are no accident."""


@dataclass(frozen=True, kw_only=True)
class ReadPair:
    """What becomes of a stored pair: picture transformed, cached ids kept where they are this run's."""

    read_image: ReadImage
    seed: int
    """What is random in a transform is a function of it and of the pair's place."""
    tokenizer: str | None = None
    """Fingerprint of the ids the run can use."""
    features: FeatureStore | None = None
    """Of pictures by id, in their place: no picture is read."""
    num_negatives: int = 0
    """Hard negatives taken along, at most; where a pair has more, they take turns from epoch to epoch."""
    mask_copies: bool = True
    """Copies of a pair carry its id, so that the loss leaves them out; false numbers them apart."""

    def __call__(self, raw: RawPair, epoch: int, position: int) -> Pair | BadPair:
        try:
            if self.features is not None:
                image_CHW = self.features.read(raw.image_id)
            else:
                with seeded_by(self.seed, epoch, position):
                    image_CHW = self.read_image(raw.image_bytes)
        except DataError as error:
            where = raw.where or f"picture {raw.image_id} of pair {raw.pair_id} (text id {raw.text_id})"
            return BadPair(f"{where}: {error}")
        return Pair(
            image_CHW,
            raw.caption,
            raw.image_id,
            raw.text_id,
            pair_id=raw.pair_id if self.mask_copies else position,
            position=position,
            token_ids=raw.token_ids if raw.tokenizer == self.tokenizer else None,
            hard_negatives=self._negatives(raw.hard_negatives, epoch),
        )

    def _negatives(self, captions: tuple[str, ...], epoch: int) -> tuple[str, ...]:
        if len(captions) <= self.num_negatives:
            return captions
        start = epoch * self.num_negatives % len(captions)
        return (captions + captions)[start : start + self.num_negatives]


@dataclass(frozen=True)
class PairDataset(Dataset[Pair | BadPair]):
    """Pairs of a source by key. With `replace_bad`, one that cannot be read gives its place to another, drawn by the place."""

    source: PairSource
    read: ReadPair
    replace_bad: bool = False
    by_place: bool = False
    """Pairs are numbered by their place in the source, whatever numbers it gives them."""

    def __getitem__(self, key: PairKey) -> Pair | BadPair:
        pair = self._read(key)
        reasons: list[str] = []
        while self.replace_bad and isinstance(pair, BadPair) and len(reasons) < MAX_REPLACEMENTS:
            reasons.append(pair.reason)
            draw = stable_seed(self.read.seed, key.epoch, key.position, len(reasons))
            pair = self._read(key._replace(pair=draw % len(self.source)))
        return replace(pair, replaced=tuple(reasons)) if isinstance(pair, Pair) and reasons else pair

    def _read(self, key: PairKey) -> Pair | BadPair:
        try:
            picture = self.read.features is None
            raw = self.source.read(key.pair, epoch=key.epoch, seed=self.read.seed, picture=picture)
        except DataError as error:
            return BadPair(str(error))
        pair = self.read(raw, key.epoch, key.position)
        return replace(pair, pair_id=key.pair) if self.by_place and isinstance(pair, Pair) else pair


@dataclass(frozen=True, kw_only=True)
class StreamBatches(IterableDataset[PairBatch | BadPair]):
    """This rank's micro-batches of a stream, from `first_step` to `last_step`: worker by worker, each walks a lane of its own.

    Batch b of a rank comes from lane b modulo the number of workers, so the same batches follow wherever a run starts.
    """

    stream: PairStream
    read: ReadPair
    collate: Collate
    order: EpochOrder
    rank: int
    world_size: int
    batch_size: int
    first_step: int
    last_step: int
    replace_bad: bool = False

    @property
    def accumulate(self) -> int:
        return self.order.global_batch // (self.world_size * self.batch_size)

    @property
    def num_batches(self) -> int:
        # not `__len__`: torch takes the length of an iterable set for what each worker gives
        return (self.last_step - self.first_step) * self.accumulate

    @property
    def _seed(self) -> int:
        """Of the order of shards: another one in a later stage, which would else begin with the same pairs again."""
        before = self.order.epochs_before
        return stable_seed(self.read.seed, before) if before else self.read.seed

    def __iter__(self) -> Iterator[PairBatch | BadPair]:
        info = get_worker_info()
        worker, num_workers = (info.id, info.num_workers) if info else (0, 1)
        first = self.first_step * self.accumulate
        lane = (first + worker) % num_workers
        done = len(range(lane, first, num_workers))  # batches of this lane before the first one
        pairs = self.stream.lane(
            self.rank * num_workers + lane,
            self.world_size * num_workers,
            first=done * self.batch_size,
            seed=self._seed,
        )
        lane_pairs = _LanePairs(pairs, self.read, self.replace_bad)
        for batch in range(first + worker, self.last_step * self.accumulate, num_workers):
            yield self.collate([lane_pairs.next(*place) for place in self._places(batch)])

    def _places(self, batch: int) -> Iterator[tuple[int, int]]:
        """(epoch, position) of each pair of this rank's `batch`."""
        step, a = divmod(batch, self.accumulate)
        epoch, start = self.order.place(step)
        start += (a * self.world_size + self.rank) * self.batch_size
        return ((epoch, position) for position in range(start, start + self.batch_size))


class _LanePairs:
    """Pairs of one lane, read; with `replace_bad`, the next that can be read stands in for one that cannot.

    It comes again at its own place, so that what stands at a place does not depend on where the lane was entered. A stream
    may have chosen another one, as it does for a whole broken shard.
    """

    def __init__(self, raws: Iterator[RawPair | BadPair], read: ReadPair, replace_bad: bool) -> None:
        self._raws, self._read, self._replace_bad = raws, read, replace_bad
        self._ahead: deque[RawPair | BadPair] = deque()

    def next(self, epoch: int, position: int) -> Pair | BadPair:
        raw = self._ahead.popleft() if self._ahead else next(self._raws)
        first = self._try(raw, epoch, position)
        if not self._replace_bad or isinstance(first, Pair):
            return first
        if isinstance(raw, BadPair) and raw.instead is not None:
            pair = self._try(raw.instead, epoch, position)
            if isinstance(pair, Pair):
                return replace(pair, replaced=(raw.reason,))
        for place in range(MAX_REPLACEMENTS):
            if len(self._ahead) == place:
                self._ahead.append(next(self._raws))
            pair = self._try(self._ahead[place], epoch, position)
            if isinstance(pair, Pair):
                return replace(pair, replaced=(first.reason,))
        return first

    def _try(self, raw: RawPair | BadPair, epoch: int, position: int) -> Pair | BadPair:
        return raw if isinstance(raw, BadPair) else self._read(raw, epoch, position)
