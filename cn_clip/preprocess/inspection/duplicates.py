"""Pictures and captions that are there more than once, and what two splits share."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from cn_clip.preprocess.inspection.caption_look import show_caption
from cn_clip.preprocess.inspection.findings import distinct_captions, pairs_of
from cn_clip.preprocess.inspection.groups import Groups, connect, number_values
from cn_clip.preprocess.inspection.near_hash import near_pairs
from cn_clip.preprocess.inspection.report import (
    CaptionGroup,
    Duplicates,
    Overlap,
    PictureGroup,
    SharedPicture,
)
from cn_clip.preprocess.inspection.scan import Scan
from cn_clip.preprocess.inspection.tables import HAS_NEAR, IS_PAIR, Table

_GROUPS_SHOWN = 12
_MEMBERS_SHOWN = 8
_SHARED_SHOWN = 24


def number_pictures(table: Table) -> NDArray[np.int64]:
    """(n,) equal where the bytes are; a picture whose bytes could not be read equals none."""
    is_read = table["num_bytes"] > 0
    numbers = np.zeros(len(table), np.int64)
    numbers[is_read] = number_values(table["digest_high"][is_read], table["digest_low"][is_read])
    numbers[~is_read] = len(table) + np.arange(int((~is_read).sum()))
    return numbers


def find_equal_pictures(scan: Scan) -> Duplicates:
    table = scan.pictures.table
    return _picture_duplicates(table, Groups.of(number_pictures(table)))


def find_near_pictures(scan: Scan, distance: int) -> Duplicates:
    """Among different pictures only: of equal ones the first stands for all."""
    table = scan.pictures.table
    _, first = np.unique(number_pictures(table), return_index=True)
    distinct = table[np.sort(first)]
    distinct = distinct[distinct["state"] & HAS_NEAR > 0]
    return _picture_duplicates(distinct, Groups.of(_number_looks(distinct["near"], distance)))


def _number_looks(hashes: NDArray[np.uint64], distance: int) -> NDArray[np.int64]:
    """(n,) equal where a chain of near hashes leads from one to the other."""
    values, places = np.unique(hashes, return_inverse=True)
    return connect(len(values), near_pairs(values, distance))[places.reshape(-1)]


def _picture_duplicates(table: Table, groups: Groups) -> Duplicates:
    largest = (
        PictureGroup(size=len(rows), image_ids=tuple(table["image_id"][rows[:_MEMBERS_SHOWN]].tolist()))
        for rows in groups.largest(_GROUPS_SHOWN)
    )
    return Duplicates(num_groups=groups.num_groups, num_extra=groups.num_extra, largest=tuple(largest))


def find_equal_captions(scan: Scan) -> Duplicates:
    captions = distinct_captions(scan.captions.table)
    groups = Groups.of(number_values(captions["caption_key"]))
    largest = (_caption_group(captions[rows], scan) for rows in groups.largest(_GROUPS_SHOWN))
    return Duplicates(num_groups=groups.num_groups, num_extra=groups.num_extra, largest=tuple(largest))


def _caption_group(rows: Table, scan: Scan) -> CaptionGroup:
    with_picture = rows[rows["state"] & IS_PAIR > 0]
    image_ids = dict.fromkeys(with_picture["image_id"].tolist())
    return CaptionGroup(
        caption=show_caption(scan.source.caption(int(rows["place"][0]))),
        size=len(rows),
        image_ids=tuple(list(image_ids)[:_MEMBERS_SHOWN]),
    )


def compare(scan: Scan, other: Scan, distance: int) -> Overlap:
    """What `scan` has that `other` has too."""
    ours, theirs = scan.pictures.table, other.pictures.table
    numbers = number_pictures(np.concatenate([ours, theirs]))
    equal_there = _find(numbers[: len(ours)], numbers[len(ours) :])
    equal_here = _find(numbers[len(ours) :], numbers[: len(ours)])
    near_there, near_here = _find_near(ours, theirs, distance)
    near_there[equal_there >= 0] = -1
    captions, other_captions = distinct_captions(pairs_of(scan)), distinct_captions(pairs_of(other))
    is_shared = np.isin(captions["caption_key"], other_captions["caption_key"])
    is_shared_there = np.isin(other_captions["caption_key"], captions["caption_key"])
    places = captions["place"][is_shared][:_SHARED_SHOWN].tolist()
    return Overlap(
        other=other.source.name,
        other_path=str(other.source.path),
        num_equal=int((equal_there >= 0).sum()),
        equal=_shared(ours, theirs, equal_there),
        num_near=int((near_there >= 0).sum()),
        near=_shared(ours, theirs, near_there),
        num_captions=int(is_shared.sum()),
        captions=tuple(show_caption(scan.source.caption(place)) for place in places),
        share_of_pictures=_share((equal_here >= 0) | (near_here >= 0)),
        share_of_captions=_share(is_shared_there),
    )


def _share(flags: NDArray[np.bool_]) -> float:
    return float(flags.mean()) if len(flags) else 0.0


def _find(values: NDArray[np.int64], among: NDArray[np.int64]) -> NDArray[np.int64]:
    """(n,) place of each value among others, or -1."""
    if not len(among):
        return np.full(len(values), -1)
    order = np.argsort(among, kind="stable")
    places = np.searchsorted(among[order], values).clip(max=len(among) - 1)
    return np.where(among[order][places] == values, order[places], -1)


def _find_near(ours: Table, theirs: Table, distance: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """For each row of one table the place of one that looks like it in the other, or -1; both ways."""
    hashes = np.concatenate([ours["near"], theirs["near"]])
    has_near = np.concatenate([ours["state"], theirs["state"]]) & HAS_NEAR > 0
    values, looks = np.unique(hashes, return_inverse=True)
    looks = looks.reshape(-1)
    place_here, place_there = np.full((2, len(values)), -1)
    here, there = has_near[: len(ours)], has_near[len(ours) :]
    place_here[looks[: len(ours)][here]] = np.flatnonzero(here)
    place_there[looks[len(ours) :][there]] = np.flatnonzero(there)
    met_here, met_there = place_here.copy(), place_there.copy()
    for pairs in near_pairs(values, distance):
        for first, second in ((pairs[:, 0], pairs[:, 1]), (pairs[:, 1], pairs[:, 0])):
            np.maximum.at(met_there, first, place_there[second])
            np.maximum.at(met_here, first, place_here[second])
    return (
        np.where(here, met_there[looks[: len(ours)]], -1),
        np.where(there, met_here[looks[len(ours) :]], -1),
    )


def _shared(ours: Table, theirs: Table, places: NDArray[np.int64]) -> tuple[SharedPicture, ...]:
    rows = np.flatnonzero(places >= 0)[:_SHARED_SHOWN]
    ids = zip(ours["image_id"][rows].tolist(), theirs["image_id"][places[rows]].tolist(), strict=True)
    return tuple(SharedPicture(image_id=here, other_id=there) for here, there in ids)
