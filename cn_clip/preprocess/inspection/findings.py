"""From the tables of a scan to the figures of a report."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from cn_clip.preprocess.inspection.caption_look import (
    NUM_SPECIALS,
    name_characters,
    show_caption,
    show_character,
)
from cn_clip.preprocess.inspection.groups import Groups, number_values
from cn_clip.preprocess.inspection.report import (
    CaptionFindings,
    Counts,
    Cut,
    Fault,
    Faults,
    Histogram,
    OddCharacter,
    PictureFindings,
    Spread,
)
from cn_clip.preprocess.inspection.scan import Scan
from cn_clip.preprocess.inspection.tables import (
    HAS_INVISIBLE,
    HAS_NEAR,
    HAS_PIXELS,
    HAS_UNKNOWN,
    IS_PAIR,
    IS_STALE,
    FaultList,
    Table,
)

SMALL_PX = 224
"""Side that most towers see; a smaller picture is blown up."""
LARGE_PX = 1_000
_IDS_SHOWN = 20
_ODD_SHOWN = 30
_PLACES_SHOWN = 10
_SHORT_TOKENS = 2
_BARS = 40


def spread(values: NDArray[np.generic]) -> Spread | None:
    """None of nothing."""
    if not len(values):
        return None
    numbers = values.astype(np.float64)
    median, p90, p99 = np.percentile(numbers, [50, 90, 99]).tolist()
    return Spread(
        mean=float(numbers.mean()),
        minimum=float(numbers.min()),
        median=median,
        p90=p90,
        p99=p99,
        maximum=float(numbers.max()),
    )


def histogram(values: NDArray[np.generic], *, is_log: bool = False) -> Histogram | None:
    """Up to 40 bars; bars of whole numbers hold equally many of them. Logarithmic bars are equally wide in the logarithm."""
    if not len(values):
        return None
    low, high = float(values.min()), float(values.max())
    if is_log:
        edges = np.geomspace(low, high, _BARS + 1) if high > low else np.array([low * 0.9, low * 1.1])
        # geomspace may round the ends to inside the values
        edges[0], edges[-1] = min(edges[0], low), max(edges[-1], high)
    else:
        width = max(1, -(-int(high - low + 1) // _BARS))
        edges = np.arange(low, high + width + 1, width) - 0.5
    counts, _ = np.histogram(values.astype(np.float64), edges)
    return Histogram(edges=tuple(edges.tolist()), counts=tuple(counts.tolist()))


def pairs_of(scan: Scan) -> Table:
    """Rows of the caption table that are pairs."""
    table = scan.captions.table
    return table[table["state"] & IS_PAIR > 0]


def distinct_captions(table: Table) -> Table:
    """One row for each text of each text id, in the order of the table."""
    order = np.lexsort((table["caption_key"], table["text_id"]))
    text_ids, keys = table["text_id"][order], table["caption_key"][order]
    is_new = np.ones(len(order), bool)
    is_new[1:] = (text_ids[1:] != text_ids[:-1]) | (keys[1:] != keys[:-1])
    return table[np.sort(order[is_new])]


def count(scan: Scan) -> Counts:
    pairs, captions = pairs_of(scan), distinct_captions(scan.captions.table)
    image_ids = scan.pictures.table["image_id"]
    is_there = np.isin(pairs["image_id"], image_ids)
    missing = np.setdiff1d(scan.wanted_ids, image_ids)
    if scan.num_sampled is not None:
        is_there |= ~np.isin(pairs["image_id"], scan.wanted_ids)
    unused = np.empty(0, np.int64)
    if scan.num_sampled is None:
        unused = np.setdiff1d(image_ids, scan.wanted_ids)
    per_picture = np.unique(pairs["image_id"], return_counts=True)[1]
    per_caption = np.unique(pairs["text_id"], return_counts=True)[1]
    return Counts(
        num_pictures=len(image_ids),
        num_captions=len(captions),
        num_pairs=len(pairs),
        captions_per_picture=spread(per_picture),
        pictures_per_caption=spread(per_caption),
        num_missing_pictures=len(missing),
        missing_pictures=tuple(missing[:_IDS_SHOWN].tolist()),
        num_pairs_without_picture=int((~is_there).sum()),
        num_unused_pictures=len(unused),
        unused_pictures=tuple(unused[:_IDS_SHOWN].tolist()),
        num_captions_without_ids=int((scan.captions.table["state"] & IS_PAIR == 0).sum()),
        num_repeated_pairs=Groups.of(number_values(pairs["image_id"], pairs["caption_key"])).num_extra,
        num_reused_text_ids=_count_repeated(captions["text_id"]),
    )


def _count_repeated(values: NDArray[np.int64]) -> int:
    return int((np.unique(values, return_counts=True)[1] > 1).sum())


def describe_pictures(scan: Scan) -> PictureFindings:
    rows, table = scan.pictures, scan.pictures.table
    seen = table[table["state"] & HAS_PIXELS > 0]
    shorter, longer = np.minimum(seen["width"], seen["height"]), np.maximum(seen["width"], seen["height"])
    aspect = seen["width"] / np.maximum(seen["height"], 1)
    return PictureFindings(
        num_read=len(table),
        undecodable=_picture_faults(rows.undecodable, scan),
        unreadable=_picture_faults(rows.unreadable, scan),
        flawed=_picture_faults(rows.flawed, scan),
        num_repeated_rows=rows.num_repeated_rows,
        formats=dict(rows.formats.most_common()),
        modes=dict(rows.modes.most_common()),
        total_bytes=int(table["num_bytes"].sum(dtype=np.int64)),
        bytes=spread(seen["num_bytes"]),
        bytes_histogram=histogram(seen["num_bytes"], is_log=True),
        shorter_px=spread(shorter),
        shorter_histogram=histogram(shorter, is_log=True),
        longer_px=spread(longer),
        aspect=spread(aspect),
        aspect_histogram=histogram(aspect, is_log=True),
        num_small=int((shorter < SMALL_PX).sum()),
        num_large=int((longer > LARGE_PX).sum()),
        num_plain=int((seen["state"] & HAS_NEAR == 0).sum()),
    )


def _picture_faults(faults: FaultList, scan: Scan) -> Faults:
    name = scan.source.name_picture
    first = sorted(faults.first, key=lambda row: row.place)
    examples = (Fault(where=name(row.place, row.image_id), reason=row.reason) for row in first)
    return Faults(count=faults.count, examples=tuple(examples))


def describe_captions(scan: Scan, context_lengths: Sequence[int]) -> CaptionFindings:
    rows, source = scan.captions, scan.source
    captions = distinct_captions(rows.table)
    tokens = captions["num_tokens"]
    is_empty = tokens == NUM_SPECIALS
    is_short = (tokens > NUM_SPECIALS) & (tokens <= NUM_SPECIALS + _SHORT_TOKENS)
    bad = (Fault(where=source.name_caption(row.place), reason=row.reason) for row in rows.bad.first)
    return CaptionFindings(
        tokens=spread(tokens),
        tokens_histogram=histogram(np.minimum(tokens, 2 * max(context_lengths, default=512))),
        cuts=tuple(_cut(tokens, length) for length in context_lengths),
        num_unknown=int((captions["state"] & HAS_UNKNOWN > 0).sum()),
        unknown=_odd(rows.unknown, rows.examples, source.caption),
        num_invisible=int((captions["state"] & HAS_INVISIBLE > 0).sum()),
        invisible=_odd(rows.invisible, rows.examples, source.caption),
        num_empty=int(is_empty.sum()),
        empty=tuple(map(source.name_caption, captions["place"][is_empty][:_PLACES_SHOWN].tolist())),
        num_short=int(is_short.sum()),
        short=tuple(
            show_caption(source.caption(place))
            for place in captions["place"][is_short][:_PLACES_SHOWN].tolist()
        ),
        bad_rows=Faults(count=rows.bad.count, examples=tuple(bad)),
        num_stale_tokens=int((captions["state"] & IS_STALE > 0).sum()) if rows.has_tokens else None,
    )


def _cut(tokens: NDArray[np.uint32], context_length: int) -> Cut:
    num_cut = int((tokens > context_length).sum())
    return Cut(context_length=context_length, num_cut=num_cut, share=num_cut / max(len(tokens), 1))


def _odd(
    counts: Counter[str], examples: dict[str, int], read: Callable[[int], str]
) -> tuple[OddCharacter, ...]:
    # by count, then by character: the same list however the work was shared
    most = sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:_ODD_SHOWN]
    return tuple(
        OddCharacter(
            shown="".join(map(show_character, characters)),
            name=name_characters(characters),
            count=number,
            example=show_caption(read(examples[characters])),
        )
        for characters, number in most
    )
