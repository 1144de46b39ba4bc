"""Which drawings of one artist go to which split: whole families, so that no test drawing has a near copy in training.

A family is what differs only by man, woman or person, by direction (`面向右边`), or looks (almost)
the same, straight or in a mirror.
"""

import random
from collections import Counter
from collections.abc import Sequence
from itertools import accumulate

import numpy as np

from data_tools.emoji_quickstart.drawings import Drawing, rms_between

_MAN, _WOMAN, _PERSON = "1f468", "1f469", "1f9d1"
_DROPPED = {"2640", "2642", "27a1", "200d"}  # female, male, facing right, joiner
_LOOKALIKE_RMS = 5.0  # grey levels of 255: a mirrored walker is below 4, a redrawn lock above 9


def split_families(drawings: Sequence[Drawing], shares: dict[str, float], seed: int) -> list[str]:
    """The split of each drawing: families in random order fill each share in turn, the rest is `train`."""
    families = find_families(drawings)
    order = sorted(set(families))
    random.Random(seed).shuffle(order)
    num_drawings = Counter(families)
    split_of: dict[int, str] = {}
    num_placed = 0
    for family in order:
        bounds = zip(shares, accumulate(shares.values()), strict=True)
        split_of[family] = next((split for split, end in bounds if num_placed < end * len(drawings)), "train")
        num_placed += num_drawings[family]
    return [split_of[family] for family in families]


def find_families(drawings: Sequence[Drawing]) -> list[int]:
    """The number of each drawing's family: the place of its first member."""
    parents = list(range(len(drawings)))

    def root(member: int) -> int:
        while parents[member] != member:
            member = parents[member]
        return member

    for left, right in [*_same_base(drawings), *_lookalikes(drawings)]:
        first, second = sorted((root(left), root(right)))
        parents[second] = first
    return [root(member) for member in range(len(drawings))]


def _same_base(drawings: Sequence[Drawing]) -> list[tuple[int, int]]:
    first_of: dict[str, int] = {}
    return [
        (first_of.setdefault(_base(code), index), index)
        for index, drawing in enumerate(drawings)
        for code in drawing.codes
    ]


def _base(code: str) -> str:
    people = {_MAN: _PERSON, _WOMAN: _PERSON}
    return "-".join(people.get(point, point) for point in code.split("-") if point not in _DROPPED) or code


def _lookalikes(drawings: Sequence[Drawing]) -> list[tuple[int, int]]:
    if not drawings:
        return []
    thumbnails = np.stack([drawing.thumbnail_TT3 for drawing in drawings])
    mirrored = thumbnails[:, :, ::-1]
    near_NN = (
        np.minimum(rms_between(thumbnails, thumbnails), rms_between(thumbnails, mirrored)) < _LOOKALIKE_RMS
    )
    return [(int(left), int(right)) for left, right in np.argwhere(near_NN) if left < right]
