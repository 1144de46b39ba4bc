"""The inspection as a whole: splits found, looked at, compared, and what to do about them."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cn_clip import __version__
from cn_clip.data.store import PairColumns
from cn_clip.errors import ConfigError, DataError
from cn_clip.preprocess.inspection.advice import advise
from cn_clip.preprocess.inspection.caption_look import show_caption
from cn_clip.preprocess.inspection.duplicates import (
    compare,
    find_equal_captions,
    find_equal_pictures,
    find_near_pictures,
    number_pictures,
)
from cn_clip.preprocess.inspection.false_negatives import count_equal, count_others, risks
from cn_clip.preprocess.inspection.findings import count, describe_captions, describe_pictures, pairs_of
from cn_clip.preprocess.inspection.near_hash import MAX_DISTANCE
from cn_clip.preprocess.inspection.report import (
    Effort,
    Example,
    FalseNegatives,
    InspectionReport,
    SplitInspection,
)
from cn_clip.preprocess.inspection.scan import Scan, scan
from cn_clip.preprocess.inspection.sources import Source, find_sources, names_in, tell_names
from cn_clip.preprocess.inspection.tables import HAS_PIXELS, Table
from cn_clip.preprocess.inspection.unique_batch import advise_batch

logger = logging.getLogger(__name__)

_CAPTIONS_SHOWN = 3


@dataclass(frozen=True, kw_only=True)
class Options:
    """How to look."""

    split: str | None = None
    """One split of a folder; None takes all."""
    against: Path | None = None
    """A split to look for the same pictures and captions in; or the name of another split of the same folder."""
    batches: tuple[int, ...] = (128, 1024, 8192, 32768)
    context_lengths: tuple[int, ...] = (32, 52, 64, 77, 128, 256, 512)
    near_distance: int = 4
    """Bits of 64."""
    sample: int | None = None
    """Random pairs to look at; None looks at all."""
    num_examples: int = 24
    workers: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        for flag, value, lowest in (
            ("--sample", self.sample, 1),
            ("--workers", self.workers, 1),
            ("--pictures", self.num_examples, 0),
            ("--seed", self.seed, 0),
            ("--near-distance", self.near_distance, 0),
            ("--batch", min(self.batches, default=2), 2),
            ("--context-length", min(self.context_lengths, default=3), 3),
        ):
            if value is not None and value < lowest:
                raise ConfigError(f"{flag} is {value}: give a whole number from {lowest} on")
        if self.near_distance > MAX_DISTANCE:
            raise ConfigError(
                f"--near-distance is {self.near_distance} of 64 bits: more than {MAX_DISTANCE} finds pictures that "
                f"look nothing alike; give 0 to {MAX_DISTANCE}"
            )


class PictureReader:
    """Pictures of the splits looked at, for a page to show."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[Source, NDArray[np.int64], NDArray[np.int64]]] = {}

    def add(self, seen: Scan) -> None:
        table = seen.pictures.table
        self._known[str(seen.source.path)] = seen.source, table["image_id"].copy(), table["place"].copy()

    def read(self, path: str, image_id: int) -> bytes | None:
        """The encoded picture of a split, by the split's path; None where it cannot be read."""
        source, ids, places = self._known[path]
        at = int(np.searchsorted(ids, image_id))
        if at == len(ids) or int(ids[at]) != image_id:
            return None
        try:
            return source.picture(int(places[at]), image_id)
        except (DataError, ValueError):
            return None


def inspect_data(data: Path, options: Options) -> tuple[InspectionReport, PictureReader]:
    """Look at each split of `data`. DataError when there is none, or it cannot be opened."""
    sources = find_sources(data, options.split)
    pictures = PictureReader()
    other = _scan_other(data, options)
    if other is not None:
        pictures.add(other)
    splits = []
    for source in sources:
        if other is not None and source.path.resolve() == other.source.path.resolve():
            splits.append(_describe(other, None, options))
            continue
        seen = _scan(source, options)
        pictures.add(seen)
        splits.append(_describe(seen, other, options))
    report = InspectionReport(
        data=str(data),
        near_distance=options.near_distance,
        seed=options.seed,
        version=__version__,
        splits=tuple(splits),
    )
    return report, pictures


def _scan(source: Source, options: Options) -> Scan:
    return scan(source, workers=options.workers, sample=options.sample, seed=options.seed)


def _scan_other(data: Path, options: Options) -> Scan | None:
    """The split of `--against`: a path, or the name of another split at `data`."""
    if options.against is None:
        return None
    given = options.against
    folder = next((folder for folder in (data, data.parent) if str(given) in names_in(folder)), None)
    if folder is None and not given.exists() and len(given.parts) == 1:
        there = tell_names(data.parent) or ": give the path of a split"
        raise DataError(f"--against {given} does not exist{there}")
    found = find_sources(given if folder is None else folder / given, None)
    if len(found) > 1:
        names = ", ".join(source.name for source in found)
        raise ConfigError(
            f"--against {given} has several splits ({names}): give one, for example {found[0].path}"
        )
    # of a sample of both, next to nothing would meet
    return _scan(found[0], replace(options, sample=None))


def _describe(seen: Scan, other: Scan | None, options: Options) -> SplitInspection:
    pictures = seen.pictures
    split = SplitInspection(
        name=seen.source.name,
        path=str(seen.source.path),
        kind=seen.source.kind,
        num_sampled=seen.num_sampled,
        counts=count(seen),
        pictures=describe_pictures(seen),
        captions=describe_captions(seen, options.context_lengths),
        equal_pictures=find_equal_pictures(seen),
        near_pictures=find_near_pictures(seen, options.near_distance),
        equal_captions=find_equal_captions(seen),
        false_negatives=_find_false_negatives(seen, options.batches),
        overlap=None if other is None else compare(seen, other, options.near_distance),
        advice=(),
        examples=_draw_examples(seen, options),
        effort=Effort(
            seconds=seen.seconds,
            picture_cpu_seconds=pictures.cpu_seconds,
            pictures_per_cpu_second=len(pictures.table) / max(pictures.cpu_seconds, 1e-9),
            workers=options.workers,
        ),
    )
    return replace(split, advice=advise(split, seen.source.why_rebuild()))


def _columns(seen: Scan) -> PairColumns:
    """Ids of all pairs, of a sample too: what meets in a batch is no matter of the pictures looked at."""
    try:
        stored = None if seen.num_sampled is None else seen.source.columns()
    except DataError as error:
        logger.warning("%s; until then batches are judged by the pairs looked at.", error)
        stored = None
    if stored is not None:
        return stored
    pairs = pairs_of(seen)
    return PairColumns(pairs["image_id"], pairs["text_id"], pairs["caption_key"])


def _find_false_negatives(seen: Scan, batches: tuple[int, ...]) -> FalseNegatives | None:
    columns = _columns(seen)
    image_ids, text_ids, keys = columns.image_ids, columns.text_ids, columns.caption_keys
    if len(image_ids) < 2:
        return None
    others = count_others(image_ids, text_ids, keys)
    same_picture, same_text_id, same_text = map(count_equal, (image_ids, text_ids, keys))
    most_frequent = 1 + int(max(same_picture.max(), same_text.max()))
    bound = len(image_ids) // most_frequent
    unseen = np.zeros(0, np.int64)
    if seen.num_sampled is None:
        unseen = count_others(_number_contents(seen, image_ids), text_ids, keys) - others
    return FalseNegatives(
        num_pairs=len(image_ids),
        risks=risks(others, batches),
        same_picture_id=float(same_picture.mean()),
        same_text_id=float(same_text_id.mean()),
        same_text=float(same_text.mean()),
        unseen_risks=risks(unseen, batches) if unseen.any() else (),
        largest_unique_batch=bound,
        advised_unique_batch=advise_batch(columns, bound),
    )


def _number_contents(seen: Scan, image_ids: NDArray[np.int64]) -> NDArray[np.int64]:
    """(P,) equal for pairs whose pictures have the same bytes; a picture not looked at equals itself only."""
    table = seen.pictures.table
    all_ids, places = np.unique(np.concatenate([table["image_id"], image_ids]), return_inverse=True)
    contents = np.arange(len(all_ids)) + 2 * len(table)
    contents[np.searchsorted(all_ids, table["image_id"])] = number_pictures(table)
    return contents[places.reshape(-1)[len(table) :]]


def _draw_examples(seen: Scan, options: Options) -> tuple[Example, ...]:
    """Random pictures that decode and have captions."""
    table, pairs = seen.pictures.table, pairs_of(seen)
    usable = table[(table["state"] & HAS_PIXELS > 0) & np.isin(table["image_id"], seen.wanted_ids)]
    draw = np.random.default_rng(options.seed)
    chosen = draw.permutation(len(usable))[: options.num_examples]
    return tuple(_example(row, pairs, seen.source) for row in usable[chosen])


def _example(picture: np.void, pairs: Table, source: Source) -> Example:
    places = pairs["place"][pairs["image_id"] == picture["image_id"]].tolist()
    return Example(
        image_id=int(picture["image_id"]),
        width=int(picture["width"]),
        height=int(picture["height"]),
        captions=tuple(show_caption(source.caption(place)) for place in places[:_CAPTIONS_SHOWN]),
        num_captions=len(places),
    )
