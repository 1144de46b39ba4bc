from __future__ import annotations

import random
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from cn_clip.data.randomness import seeded_by

Draw = tuple[float, float, float]


def draw() -> Draw:
    return random.random(), float(np.random.standard_normal()), float(torch.rand(1))


def draw_at(*place: int) -> Draw:
    with seeded_by(*place):
        return draw()


class Draws(Dataset[Draw]):
    def __len__(self) -> int:
        return 6

    def __getitem__(self, index: int) -> Draw:
        return draw_at(0, index)


def test_draws_are_a_function_of_the_numbers() -> None:
    here = [draw_at(7, 0, position) for position in range(5)]
    assert here == [draw_at(7, 0, position) for position in range(5)]
    assert len({value for drawn in here for value in drawn}) == 15
    assert draw_at(8, 0, 0) != here[0] and draw_at(7, 1, 0) != here[0]


@pytest.mark.parametrize("leave", [draw, lambda: draw_at(3, 3)])
def test_draws_outside_go_on_as_if_nothing_had_been_drawn(leave: Callable[[], Draw]) -> None:
    def outside(inside: Callable[[], object]) -> list[float]:
        random.seed(1)
        np.random.seed(1)
        torch.manual_seed(1)
        drawn = [float(np.random.randn()), random.gauss(0, 1), float(torch.randn(1))]
        inside()
        # numpy's and Python's second normal number is kept from the first draw
        return [*drawn, float(np.random.randn()), random.gauss(0, 1), float(torch.randn(1))]

    same = outside(lambda: None) == outside(lambda: leave())
    assert same == (leave is not draw)


def test_an_error_inside_puts_the_generators_back() -> None:
    random.seed(2)
    expected = random.random()
    random.seed(2)
    with pytest.raises(KeyError), seeded_by(1):
        raise KeyError
    assert random.random() == expected


@pytest.mark.parametrize("num_workers", [1, 2])
def test_workers_draw_what_one_process_draws(num_workers: int) -> None:
    here = [draw_at(0, index) for index in range(6)]
    loader = DataLoader(Draws(), batch_size=None, num_workers=num_workers, collate_fn=tuple)
    assert list(loader) == here
