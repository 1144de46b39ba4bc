"""The one pass over captions and pictures, shared among worker processes."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cn_clip.data.captions import caption_key
from cn_clip.preprocess.inspection.caption_look import CaptionEye
from cn_clip.preprocess.inspection.picture_look import look_at
from cn_clip.preprocess.inspection.sources import RawCaption, RawPicture, Source, Stretch, Unusable
from cn_clip.preprocess.inspection.tables import (
    HAS_INVISIBLE,
    HAS_NEAR,
    HAS_PIXELS,
    HAS_UNKNOWN,
    IS_PAIR,
    IS_STALE,
    PAIR,
    PICTURE,
    CaptionRows,
    PictureRows,
)
from cn_clip.preprocess.inspection.worker_pool import open_pool


@dataclass(frozen=True)
class Scan:
    """All that was seen of a split."""

    source: Source
    captions: CaptionRows
    pictures: PictureRows
    wanted_ids: NDArray[np.int64]
    """Sorted picture ids that the captions looked at name."""
    num_sampled: int | None
    """Pairs drawn, where not all were looked at."""
    seconds: float


def scan(source: Source, *, workers: int, sample: int | None, seed: int) -> Scan:
    """Look at every pair, or at the pictures of `sample` pairs drawn at random.

    Where pairs can be read by number only those captions are read; of a JSONL all are, which takes seconds.
    """
    started = time.monotonic()
    draw = np.random.default_rng(seed)
    num_pairs = source.num_pairs_by_number()
    chosen = None if sample is None or num_pairs is None else _draw(num_pairs, sample, draw)
    with open_pool(workers, _begin, source) as run:
        captions = join_captions(
            run(
                _look_at_captions,
                source.caption_stretches(chosen),
                f"{source.name} captions",
                source.caption_unit,
            )
        )
        ids = captions.table["image_id"][captions.table["state"] & IS_PAIR > 0]
        if sample is not None and num_pairs is None:
            chosen = _draw(len(ids), sample, draw)
            ids = ids if chosen is None else ids[chosen]
        wanted = np.unique(ids)
        stretches = source.picture_stretches(None if chosen is None else wanted)
        pictures = join_pictures(
            run(_look_at_pictures, stretches, f"{source.name} pictures", source.picture_unit)
        )
    num_sampled = None if chosen is None else len(chosen)
    return Scan(source, captions, pictures, wanted, num_sampled, time.monotonic() - started)


def _draw(total: int, count: int, generator: np.random.Generator) -> NDArray[np.int64] | None:
    """`count` sorted numbers below `total`, or None when that is all of them."""
    return None if count >= total else np.sort(generator.choice(total, count, replace=False))


_source: Source
_eye: CaptionEye
"""Of this process."""


def _begin(source: Source) -> None:
    global _source, _eye
    _source, _eye = source, CaptionEye()


def _look_at_captions(stretch: Stretch) -> CaptionRows:
    rows: list[tuple[int, int, int, int, int, int]] = []
    found = CaptionRows(np.empty(0, PAIR))
    for caption in _source.captions(stretch):
        if isinstance(caption, Unusable):
            found.bad.add(caption)
        else:
            rows += _caption_rows(caption, found)
    found.table = np.array(rows, PAIR)
    return found


def _caption_rows(caption: RawCaption, found: CaptionRows) -> list[tuple[int, int, int, int, int, int]]:
    look = _eye.look_at(caption.text)
    state = HAS_UNKNOWN * bool(look.unknown) | HAS_INVISIBLE * bool(look.invisible)
    if caption.tokens is not None:
        found.has_tokens = True
        state |= IS_STALE * (caption.tokens.tolist() != _eye.ids(caption.text))
    if not caption.repeats:
        found.unknown.update(look.unknown)
        found.invisible.update(look.invisible)
        for character in look.unknown + look.invisible:
            found.examples.setdefault(character, caption.place)
    rest = (caption.text_id, caption_key(caption.text), caption.place, look.num_tokens)
    return [(image_id, *rest, state | IS_PAIR) for image_id in caption.image_ids] or [(0, *rest, state)]


def join_captions(parts: Iterable[CaptionRows]) -> CaptionRows:
    """One of all, in their order."""
    tables, whole = [np.empty(0, PAIR)], CaptionRows(np.empty(0, PAIR))
    for part in parts:
        tables.append(part.table)
        whole.bad.extend(part.bad)
        whole.unknown.update(part.unknown)
        whole.invisible.update(part.invisible)
        for character, place in part.examples.items():
            whole.examples.setdefault(character, place)
        whole.has_tokens |= part.has_tokens
    whole.table = np.concatenate(tables)
    return whole


def _look_at_pictures(stretch: Stretch) -> PictureRows:
    started = time.process_time()
    rows: list[tuple[int, ...]] = []
    found = PictureRows(np.empty(0, PICTURE))
    for picture in _source.pictures(stretch):
        if isinstance(picture, RawPicture):
            rows.append(_picture_row(picture, found))
            continue
        found.unreadable.add(picture)
        if picture.image_id is not None:  # there, if of no use: its captions miss no picture
            rows.append((picture.image_id, 0, 0, 0, picture.place, 0, 0, 0, 0))
    found.table = np.array(rows, PICTURE)
    found.cpu_seconds = time.process_time() - started
    return found


def _picture_row(raw: RawPicture, found: PictureRows) -> tuple[int, ...]:
    look = look_at(raw.picture)
    if look.fault is not None:
        found.undecodable.add(Unusable(raw.place, look.fault, raw.image_id))
    else:
        found.formats[look.format] += 1
        found.modes[look.mode] += 1
    if look.flaw is not None:
        found.flawed.add(Unusable(raw.place, look.flaw, raw.image_id))
    state = HAS_PIXELS * (look.fault is None) | HAS_NEAR * (look.near is not None)
    high, low = int.from_bytes(look.digest[:8]), int.from_bytes(look.digest[8:])
    return (
        raw.image_id,
        high,
        low,
        look.near or 0,
        raw.place,
        look.width,
        look.height,
        look.num_bytes,
        state,
    )


def join_pictures(parts: Iterable[PictureRows]) -> PictureRows:
    """One of all, sorted by id; of rows with the same id the first stays, and another picture under its id is a fault."""
    tables, whole = [np.empty(0, PICTURE)], PictureRows(np.empty(0, PICTURE))
    for part in parts:
        tables.append(part.table)
        whole.undecodable.extend(part.undecodable)
        whole.unreadable.extend(part.unreadable)
        whole.flawed.extend(part.flawed)
        whole.formats.update(part.formats)
        whole.modes.update(part.modes)
        whole.cpu_seconds += part.cpu_seconds
    table = np.concatenate(tables)
    tables.clear()
    order = np.argsort(table["image_id"], kind="stable")
    table = table[order]
    del order
    ids = table["image_id"]
    again = np.flatnonzero(ids[1:] == ids[:-1]) + 1
    other, before = table[again], table[np.searchsorted(ids, ids[again])]
    differs = (other["digest_high"] != before["digest_high"]) | (other["digest_low"] != before["digest_low"])
    for row in np.sort(other[differs], order="place"):
        fault = "its id was given before with another picture"
        whole.unreadable.add(Unusable(int(row["place"]), fault, int(row["image_id"])))
    whole.num_repeated_rows = int((~differs).sum())
    whole.table = np.delete(table, again) if len(again) else table
    return whole
