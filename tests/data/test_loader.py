"""Batches from sources and streams: order, workers, pairs that cannot be read, workers that die."""

from __future__ import annotations

import logging
from collections.abc import Callable

import pytest
import torch

from cn_clip.data.batches import Collate, PairBatch
from cn_clip.data.loader import PairLoader, Workers, explained_worker_death
from cn_clip.data.pair_dataset import PairDataset, ReadPair, StreamBatches
from cn_clip.data.pairs import PairSource, PairStream
from cn_clip.data.sampler import EpochOrder, MicroBatches
from cn_clip.errors import DataError

NUM_STEPS = 6
Source = Callable[..., PairSource]
Stream = Callable[..., PairStream]


@pytest.fixture
def sampled(read_pair: ReadPair, collate: Collate) -> Callable[..., list[PairBatch]]:
    """Batches of 4 of a source, in so many workers."""

    def batches(
        source: PairSource,
        *,
        num_workers: int = 0,
        skip: bool = False,
        first_step: int = 0,
        share: float = 0.3,
    ) -> list[PairBatch]:
        order = EpochOrder.over(len(source), micro_global=4, accumulate=1, seed=1)
        sampler = MicroBatches(
            order, rank=0, world_size=1, batch_size=4, first_step=first_step, last_step=NUM_STEPS
        )
        loader = PairLoader.sampled(
            PairDataset(source, read_pair, replace_bad=skip),
            sampler,
            collate,
            Workers(num=num_workers),
            max_bad_share=share if skip else None,
        )
        return list(loader)

    return batches


@pytest.fixture
def streamed(read_pair: ReadPair, collate: Collate) -> Callable[..., list[PairBatch]]:
    """Batches of 3, two to a step, of one of two ranks of a stream."""

    def batches(
        stream: PairStream, *, num_workers: int = 0, first_step: int = 0, skip: bool = False, rank: int = 0
    ) -> list[PairBatch]:
        made = StreamBatches(
            stream=stream,
            read=read_pair,
            collate=collate,
            order=EpochOrder.over(stream.num_pairs, micro_global=6, accumulate=2, seed=1),
            rank=rank,
            world_size=2,
            batch_size=3,
            first_step=first_step,
            last_step=NUM_STEPS,
            replace_bad=skip,
        )
        return list(PairLoader.streamed(made, Workers(num=num_workers), max_bad_share=0.3 if skip else None))

    return batches


def same(first: list[PairBatch], second: list[PairBatch]) -> bool:
    return len(first) == len(second) and all(
        torch.equal(one.images_BCHW, other.images_BCHW)
        and torch.equal(one.pair_ids_B, other.pair_ids_B)
        and torch.equal(one.positions_B, other.positions_B)
        for one, other in zip(first, second, strict=True)
    )


def test_workers_change_nothing(memory_pairs: Source, sampled: Callable[..., list[PairBatch]]) -> None:
    alone = sampled(memory_pairs())
    assert len(alone) == NUM_STEPS
    assert [batch.images_BCHW[:, 0, 0, 0].tolist() for batch in alone] == [
        batch.pair_ids_B.tolist() for batch in alone
    ]
    assert same(alone, sampled(memory_pairs(), num_workers=2))
    assert same(alone[2:], sampled(memory_pairs(), num_workers=2, first_step=2))


@pytest.mark.parametrize(
    ("damage", "reason"),
    [({"missing": (3,)}, "memory has no pair 3"), ({"cut": (3,)}, r"picture 3 of pair 3 \(text id 1003\): ")],
)
@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_bad_pair_stops_with_its_reason(
    memory_pairs: Source,
    sampled: Callable[..., list[PairBatch]],
    damage: dict[str, tuple[int, ...]],
    reason: str,
    num_workers: int,
) -> None:
    with pytest.raises(DataError, match=reason + r".*data\.bad_pairs=skip"):
        sampled(memory_pairs(**damage), num_workers=num_workers)


def test_another_pair_stands_in_the_same_for_any_start_and_workers(
    memory_pairs: Source, sampled: Callable[..., list[PairBatch]], caplog: pytest.LogCaptureFixture
) -> None:
    whole, damaged = sampled(memory_pairs()), memory_pairs(missing=(3, 9), cut=(4,))
    with caplog.at_level(logging.WARNING):
        mended = sampled(damaged, skip=True)
    assert same(mended, sampled(damaged, skip=True, num_workers=2))
    assert same(mended[3:], sampled(damaged, skip=True, first_step=3))
    before = torch.cat([batch.pair_ids_B for batch in whole])
    after = torch.cat([batch.pair_ids_B for batch in mended])
    bad = torch.isin(before, torch.tensor([3, 4, 9]))
    assert torch.equal(before[~bad], after[~bad])
    assert not torch.isin(after, torch.tensor([3, 4, 9])).any()
    assert sum(len(batch.replaced) for batch in mended) >= int(bad.sum())
    assert "stands in for one that cannot be read: memory has no pair 3" in caplog.text


def test_too_many_bad_pairs_end_the_run(
    memory_pairs: Source, sampled: Callable[..., list[PairBatch]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cn_clip.data.loader.FEW_PAIRS", 10)
    with pytest.raises(DataError, match=r"2 of the first \d+ pairs cannot be read, more than .*=0\.1;"):
        sampled(memory_pairs(missing=(3, 9)), skip=True, share=0.1)


def test_nothing_readable_ends_the_run(memory_pairs: Source, sampled: Callable[..., list[PairBatch]]) -> None:
    with pytest.raises(DataError, match="memory has no pair"):
        sampled(memory_pairs(missing=tuple(range(20))), skip=True)


def test_a_killed_worker_is_reported_with_its_cause(
    memory_pairs: Source, sampled: Callable[..., list[PairBatch]]
) -> None:
    with (
        pytest.raises(DataError, match=r"loader process \d+ died: it was killed \(signal 9\).*num_workers"),
        explained_worker_death(),
    ):
        sampled(memory_pairs(deadly=7), num_workers=1)


@pytest.mark.parametrize(
    "error",
    [
        OSError("the shared memory is full (enlarge /dev/shm)"),
        RuntimeError(
            "unable to allocate shared memory(shm) for file </torch_1_2_3>: No space left on device (28)"
        ),
    ],
)
def test_full_shared_memory_is_told_with_what_to_do(error: Exception) -> None:
    """As torch hands on what a worker met; containers have 64 MB of it unless told otherwise."""
    with (
        pytest.raises(DataError, match=r"shared memory: enlarge /dev/shm .*num_workers"),
        explained_worker_death(),
    ):
        raise error


def test_other_errors_pass_unchanged() -> None:
    with pytest.raises(RuntimeError, match="^something else$"), explained_worker_death():
        raise RuntimeError("something else")


@pytest.mark.parametrize("num_workers", [0, 1, 2])
def test_a_stream_goes_on_anywhere_with_the_same_batches(
    memory_stream: Stream, streamed: Callable[..., list[PairBatch]], num_workers: int
) -> None:
    for stream in (memory_stream(), memory_stream(bad=(2, 4), cut=(9,))):
        whole = streamed(stream, num_workers=num_workers, skip=True)
        assert len(whole) == 2 * NUM_STEPS
        for first_step in (1, 3):
            rest = streamed(stream, num_workers=num_workers, first_step=first_step, skip=True)
            assert same(whole[2 * first_step :], rest)


def test_lanes_of_all_ranks_and_workers_cover_the_stream(
    memory_stream: Stream, streamed: Callable[..., list[PairBatch]]
) -> None:
    ranks = [streamed(memory_stream(), num_workers=2, rank=rank) for rank in range(2)]
    epoch = [batch for rank in ranks for batch in rank[:4]]
    assert sorted(pair for batch in epoch for pair in batch.pair_ids_B.tolist()) == list(range(24))
    assert sorted(place for batch in epoch for place in batch.positions_B.tolist()) == list(range(24))


def test_a_bad_pair_of_a_stream_stops_or_the_next_stands_in(
    memory_stream: Stream, streamed: Callable[..., list[PairBatch]]
) -> None:
    with pytest.raises(DataError, match=r"no pair 2"):
        streamed(memory_stream(bad=(2,)))
    first, second, *_ = streamed(memory_stream(bad=(2,)), skip=True)
    assert first.pair_ids_B.tolist() == [0, 4, 4] and first.replaced == ("no pair 2",)
    assert second.pair_ids_B.tolist() == [6, 8, 10]
