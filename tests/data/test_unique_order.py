"""Global batches without a repeated picture or caption."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import pytest

from cn_clip.data import unique_order
from cn_clip.data.pairs import PairColumns, PairSource, RawPair
from cn_clip.data.sampler import EpochOrder, MicroBatches
from cn_clip.data.unique_order import UniqueOrder
from cn_clip.errors import DataError


class Columns(PairSource):
    """Pairs that are only ids."""

    def __init__(self, image_ids: list[int], caption_keys: list[int]) -> None:
        self._columns = PairColumns(np.array(image_ids), np.arange(len(image_ids)), np.array(caption_keys))
        self.num_images = len(set(image_ids))

    def __len__(self) -> int:
        return len(self._columns.image_ids)

    def read(self, index: int, *, epoch: int, seed: int, picture: bool = True) -> RawPair:
        raise AssertionError("an order reads no pictures")

    def columns(self, *, epoch: int, seed: int) -> PairColumns:
        return self._columns


def repeating(num_pairs: int = 200) -> Columns:
    """Two captions to a picture, and captions that come back under other pictures."""
    draws = np.random.default_rng(0).integers(0, num_pairs // 2, num_pairs)
    return Columns([number // 2 for number in range(num_pairs)], draws.tolist())


def unique(source: Columns, batch: int, accumulate: int = 1, seed: int = 7) -> UniqueOrder:
    order = EpochOrder.over(len(source), micro_global=batch // accumulate, accumulate=accumulate, seed=seed)
    return UniqueOrder.of(order, source)


@pytest.mark.parametrize("batch", [1, 8, 20])
@pytest.mark.parametrize("epoch", [0, 3])
def test_no_picture_and_no_caption_comes_twice_in_a_batch(batch: int, epoch: int) -> None:
    source = repeating()
    for start in range(0, 200, batch):
        pairs = unique(source, batch).at(epoch, start, start + batch).numpy()
        columns = source.columns(epoch=epoch, seed=0)
        assert len(set(columns.image_ids[pairs])) == len(set(columns.caption_keys[pairs])) == batch


def test_every_pair_has_its_turn_and_epochs_differ() -> None:
    """A small set may have no place for one or two; they are others in the next epoch."""
    order = unique(repeating(), 8)
    epochs = [order.indices(epoch).tolist() for epoch in range(2)]
    assert all(len(set(epoch)) >= 198 for epoch in epochs)
    assert {*epochs[0], *epochs[1]} == set(range(200))
    assert epochs[0] != epochs[1]
    assert epochs[0] == unique(repeating(), 8).indices(0).tolist()


def test_without_repeats_it_is_the_shuffled_order() -> None:
    source = Columns(list(range(24)), list(range(24)))
    order = unique(source, 8)
    assert order.indices(1).tolist() == EpochOrder.indices(order, 1).tolist()


def test_an_epoch_that_does_not_divide_is_filled_with_pairs_that_had_their_turn() -> None:
    order = unique(repeating(194), 8)
    pairs = order.indices(0).tolist()
    assert len(pairs) == 200 and len(set(pairs)) >= 192


def test_a_step_is_the_same_however_it_is_cut() -> None:
    def step(world_size: int, accumulate: int) -> list[int]:
        order = unique(repeating(), 8, accumulate)
        size = 8 // (world_size * accumulate)
        cut = {"world_size": world_size, "batch_size": size, "first_step": 30, "last_step": 31}
        ranks = [list(MicroBatches(order, rank=rank, **cut)) for rank in range(world_size)]
        return [key.pair for a in range(accumulate) for rank in range(world_size) for key in ranks[rank][a]]

    assert step(1, 1) == step(2, 1) == step(2, 2) == step(1, 8)


def test_what_repeats_too_often_is_left_out_and_said(caplog: pytest.LogCaptureFixture) -> None:
    source = Columns(list(range(40)), [0] * 20 + list(range(1, 21)))
    with caplog.at_level(logging.WARNING):
        pairs = unique(source, 8).indices(0).numpy()
    often = pairs < 20
    assert often.reshape(5, 8).sum(1).tolist() == [1] * 5
    assert set(pairs[~often]) == set(range(20, 40))
    assert "Epoch 1 leaves out 15 of 40 pairs" in caplog.text


def test_batches_that_cannot_be_are_refused() -> None:
    with pytest.raises(DataError, match=r"no 8 pairs can stand together .* \(at most 4"):
        unique(Columns(list(range(40)), [number % 4 for number in range(40)]), 8).indices(0)


def test_a_caption_of_a_tenth_of_the_set_does_not_pile_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Looking again at all that wait, for every batch, would take hours for millions of pairs."""
    looked_at = 0
    pick = unique_order._pick

    def counted(picked: Any, pairs: Any, *others: Any) -> Any:
        nonlocal looked_at
        looked_at += len(pairs)
        return pick(picked, pairs, *others)

    monkeypatch.setattr(unique_order, "_pick", counted)
    often = np.random.default_rng(0).random(20_000) < 0.1
    source = Columns(list(range(20_000)), np.where(often, 0, np.arange(20_000) + 1).tolist())
    pairs = unique(source, 64).indices(0).numpy()
    in_batches = often[pairs].reshape(-1, 64).sum(1)
    assert in_batches.max() == 1 and in_batches.mean() > 0.8
    assert looked_at < 3 * 20_000
