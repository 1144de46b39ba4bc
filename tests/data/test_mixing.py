from __future__ import annotations

from collections import Counter
from fractions import Fraction

import numpy as np
import pytest

from cn_clip.data.mixing import OwnIds, Turns, portions, shares


def test_portions_are_whole_and_add_up() -> None:
    assert portions(10, shares([1, 1, 1])) == [4, 3, 3]
    assert portions(7, shares([0.5, 0.25, 0.25])) == [3, 2, 2]
    assert portions(1000, shares([2, 1])) == [667, 333]


@pytest.mark.parametrize("weights", [[1], [2, 1], [0.1, 0.2, 0.7], [5, 3, 1, 1], [1e-3, 1, 1e3]])
def test_turns_keep_to_the_shares_everywhere_and_are_a_formula(weights: list[float]) -> None:
    turns = Turns.of(shares(weights), 3, 1)
    counts: Counter[int] = Counter()
    for item in range(2000):
        assert turns.before(item) == [counts[k] for k in range(len(weights))]
        counts[turns.at(item)] += 1
    for k, share in enumerate(shares(weights)):
        assert abs(counts[k] - 2000 * share) <= len(weights)
    far = 10**12
    assert abs(turns.before(far)[0] - far * shares(weights)[0]) <= 1


def test_lanes_do_not_keep_step() -> None:
    parts = (Fraction(1, 2), Fraction(1, 2))
    assert len({tuple(Turns.of(parts, 1, lane).at(item) for item in range(4)) for lane in range(30)}) > 1


def test_ids_of_different_sets_differ_and_those_of_a_single_set_stay() -> None:
    ids = np.array([0, 1, -1, 7, 2**40, 2**63 - 1, -(2**63)], np.int64)
    assert (OwnIds(0, 1)(ids) == ids).all()
    renumbered = np.concatenate([OwnIds(k, 4)(ids) for k in range(4)])
    assert len(np.unique(renumbered)) == 4 * len(ids)
    assert OwnIds(2, 4).of(7, 2**63 - 1) == OwnIds(2, 4)(ids[[3, 5]]).tolist()
