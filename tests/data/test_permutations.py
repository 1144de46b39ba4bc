from __future__ import annotations

import numpy as np
import pytest

from cn_clip.data.permutations import Permutation, shuffled


@pytest.mark.parametrize("length", [1, 2, 3, 7, 8, 9, 1000, 4097])
def test_orders_hold_every_place_once(length: int) -> None:
    order = Permutation(length, seed=5)
    whole = order.at(np.arange(length))
    assert sorted(whole) == sorted(shuffled(length, 5)) == list(range(length))
    assert [order[place] for place in range(0, length, 7)] == whole[::7].tolist()


def test_orders_are_these_on_every_machine() -> None:
    assert shuffled(6, 1) == [4, 0, 3, 5, 2, 1]
    assert Permutation(10, 1).at(np.arange(10)).tolist() == [6, 0, 2, 4, 3, 9, 8, 5, 1, 7]


def test_every_place_is_as_likely() -> None:
    counts = np.zeros((5, 5))
    for seed in range(3000):
        counts[np.arange(5), Permutation(5, seed).at(np.arange(5))] += 1
    assert counts.min() > 500 and counts.max() < 700
