from __future__ import annotations

from collections import Counter

import pytest

from cn_clip.data.tars.dealing import deal


@pytest.mark.parametrize("num_shards", [1, 2, 3, 5, 8, 12, 17])
@pytest.mark.parametrize("num_lanes", [1, 2, 3, 6, 8, 13])
def test_lanes_get_the_same_amount_and_together_everything(num_shards: int, num_lanes: int) -> None:
    per_shard = 2 * num_lanes
    for round_number in range(3):
        dealt: Counter[tuple[int, int]] = Counter()
        sizes = set()
        for lane in range(num_lanes):
            pieces = deal(num_shards, lane, num_lanes, round_number=round_number, seed=3)
            for piece in pieces:
                own = [number for number in range(per_shard) if piece.has(number)]
                assert own == [piece.number(place) for place in range(piece.size(per_shard))]
                assert piece.size(5) == sum(piece.has(number) for number in range(5))
                dealt.update((piece.shard, number) for number in own)
            sizes.add(sum(piece.size(per_shard) for piece in pieces))
            assert sum(piece.period > 1 for piece in pieces) <= 2
        assert len(dealt) == dealt.total() == num_shards * per_shard
        assert len(sizes) == 1


def test_rounds_and_seeds_have_their_own_orders() -> None:
    orders = {
        tuple(piece.shard for piece in deal(9, 0, 1, round_number=round_number, seed=seed))
        for round_number in range(3)
        for seed in (1, 2)
    }
    assert len(orders) == 6
