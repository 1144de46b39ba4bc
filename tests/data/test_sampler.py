"""Order of pairs: the reference's permutation, the same sets for any cut, any step at once."""

from __future__ import annotations

import pytest
import torch
from torch.utils.data import DistributedSampler

from cn_clip.data.sampler import EpochOrder, MicroBatches, ValidationBatches
from cn_clip.errors import DataError


def order(num_pairs: int = 21, micro_global: int = 8, accumulate: int = 1, **options: str) -> EpochOrder:
    return EpochOrder.over(num_pairs, micro_global=micro_global, accumulate=accumulate, seed=123, **options)


def batches(
    of: EpochOrder, *, rank: int, world_size: int, batch_size: int, first: int = 0, last: int = 6
) -> list:
    return list(
        MicroBatches(
            of, rank=rank, world_size=world_size, batch_size=batch_size, first_step=first, last_step=last
        )
    )


@pytest.mark.parametrize("epoch", [0, 1, 5])
def test_order_is_that_of_torchs_distributed_sampler_over_the_padded_set(epoch: int) -> None:
    theirs = DistributedSampler(range(24), num_replicas=1, rank=0, shuffle=True, seed=123)
    theirs.set_epoch(epoch)
    assert order().indices(epoch).tolist() == [index % 21 for index in theirs]


@pytest.mark.parametrize(
    ("world_size", "accumulate", "batch_size"), [(1, 1, 8), (2, 1, 4), (1, 4, 2), (2, 2, 2)]
)
def test_a_step_sees_the_same_pairs_however_it_is_cut(
    world_size: int, accumulate: int, batch_size: int
) -> None:
    of = order(micro_global=world_size * batch_size, accumulate=accumulate)
    per_rank = [batches(of, rank=r, world_size=world_size, batch_size=batch_size) for r in range(world_size)]
    for step in range(6):
        mine = [per_rank[r][step * accumulate + a] for a in range(accumulate) for r in range(world_size)]
        assert [key for batch in mine for key in batch] == order().block(step, 0, 8)


def test_every_pair_is_seen_each_epoch_and_epochs_differ() -> None:
    epochs = [order().indices(epoch) for epoch in range(3)]
    assert all(set(indices.tolist()) == set(range(21)) for indices in epochs)
    assert not torch.equal(epochs[0], epochs[1])


def test_starting_at_a_step_gives_what_a_full_pass_gives_there() -> None:
    whole = batches(order(), rank=0, world_size=1, batch_size=8)
    assert batches(order(), rank=0, world_size=1, batch_size=8, first=4) == whole[4:]


def test_reference_epoch_end_drops_what_does_not_fill_an_accumulated_step() -> None:
    of = order(micro_global=4, accumulate=4, epoch_end="reference")
    assert (of.num_padded, of.steps_per_epoch) == (24, 1)
    assert order(micro_global=4, accumulate=4).steps_per_epoch == 2


def test_an_epoch_without_a_step_is_refused() -> None:
    with pytest.raises(DataError, match="accumulate"):
        order(num_pairs=3, micro_global=4, accumulate=2, epoch_end="reference")


def test_no_pairs_is_refused() -> None:
    with pytest.raises(DataError, match="there are no pairs"):
        order(num_pairs=0)


def test_validation_deals_positions_out_as_the_reference_does() -> None:
    of = order()
    for rank in range(2):
        theirs = DistributedSampler(range(24), num_replicas=2, rank=rank, shuffle=True, seed=123)
        ours = ValidationBatches(of, rank=rank, world_size=2, batch_size=4)
        assert len(ours) == len(list(ours)) == 3
        assert [key.pair for batch in ours for key in batch] == [index % 21 for index in theirs]
