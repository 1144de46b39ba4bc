"""Mixed sets: shares, walks through each of them over epochs, ids that stay apart, places that can be entered."""

from __future__ import annotations

import pickle
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from cn_clip.config.schema import WeightedPart
from cn_clip.data.captions import caption_key
from cn_clip.data.pairs import BadPair, PairSource, PairStream, RawPair, lmdb_pairs, mixture, webdataset
from cn_clip.errors import ConfigError, DataError
from tests.data.pairs.conftest import read_epoch, walk

Split = Callable[..., str]
Shards = Callable[..., Path]


def lmdb(path: str, weight: float | None = None, captions: str = "all") -> WeightedPart:
    return WeightedPart("lmdb_pairs", lmdb_pairs.Options(path=path, captions=captions), weight)


def tars(path: Path, weight: float | None = None) -> WeightedPart:
    return WeightedPart("webdataset", webdataset.Options(urls=(str(path),), shuffle=3), weight)


def mixed(*sources: WeightedPart, pairs_per_epoch: int | None = None) -> PairSource:
    source = mixture.build(mixture.Options(sources=sources, pairs_per_epoch=pairs_per_epoch))
    assert isinstance(source, PairSource)
    return source


def mixed_stream(*sources: WeightedPart, pairs_per_epoch: int | None = None) -> PairStream:
    stream = mixture.build(mixture.Options(sources=sources, pairs_per_epoch=pairs_per_epoch))
    assert isinstance(stream, PairStream)
    return stream


def test_without_weights_every_pair_comes_once_an_epoch(split: Split) -> None:
    source = mixed(lmdb(split("a", 5)), lmdb(split("b", 3)))
    assert (len(source), source.num_images) == (8, 8)
    for epoch in range(3):
        captions = Counter(pair.caption for pair in read_epoch(source, epoch))
        assert captions == Counter([*(f"a {n}" for n in range(5)), *(f"b {n}" for n in range(3))])


def test_shares_hold_and_each_set_is_walked_evenly_across_epochs(split: Split) -> None:
    source = mixed(lmdb(split("large", 12), 1), lmdb(split("small", 2), 2), pairs_per_epoch=9)
    seen: Counter[str] = Counter()
    for epoch in range(4):
        captions = [pair.caption for pair in read_epoch(source, epoch)]
        assert sum(caption.startswith("large") for caption in captions) == 3
        seen.update(captions)
    # 12 entries of the large set are each of its pairs once; 24 of the small one each of its two twelve times
    assert Counter(seen.values()) == {1: 12, 12: 2}


def test_a_round_has_another_order_and_a_seed_too(split: Split) -> None:
    source = mixed(lmdb(split("a", 9)))
    orders = {tuple(p.pair_id for p in read_epoch(source, e, seed)) for e in range(2) for seed in (7, 8)}
    assert len(orders) == 4


def test_columns_are_those_of_the_pairs_that_are_read(split: Split) -> None:
    inner = mixture.Options(sources=(lmdb(split("x", 3)), lmdb(split("y", 2), captions="one")))
    source = mixed(lmdb(split("a", 7), 3), WeightedPart("mixture", inner, 2), pairs_per_epoch=15)
    for epoch in range(3):
        columns, pairs = source.columns(epoch=epoch, seed=7), list(read_epoch(source, epoch))
        assert columns.image_ids.tolist() == [pair.image_id for pair in pairs]
        assert columns.text_ids.tolist() == [pair.text_id for pair in pairs]
        assert columns.caption_keys.tolist() == [caption_key(pair.caption) for pair in pairs]
        assert columns.image_ids.dtype == np.int64


def test_ids_of_different_sets_never_meet_and_copies_of_a_pair_do(split: Split) -> None:
    source = mixed(lmdb(split("a", 4), 2), lmdb(split("b", 4), 1), pairs_per_epoch=18)
    by_caption: dict[str, set[tuple[int, int, int]]] = {}
    for pair in read_epoch(source, 0):
        by_caption.setdefault(pair.caption, set()).add((pair.image_id, pair.text_id, pair.pair_id))
    assert len(by_caption) == 8 and all(len(ids) == 1 for ids in by_caption.values())
    for kind in range(3):
        assert len({next(iter(ids))[kind] for ids in by_caption.values()}) == 8


def test_one_split_may_serve_twice(split: Split) -> None:
    path = split("a", 3)
    assert len(list(read_epoch(mixed(lmdb(path), lmdb(path, captions="one")), 0))) == 6


def test_a_single_set_keeps_its_ids(split: Split) -> None:
    assert sorted(pair.image_id for pair in read_epoch(mixed(lmdb(split("a", 4, 50))), 0)) == [50, 51, 52, 53]


@pytest.mark.parametrize("num_lanes", [1, 2, 4])
def test_a_mixture_with_a_stream_is_a_stream_that_can_be_entered_anywhere(
    split: Split, shards: Shards, num_lanes: int
) -> None:
    stream = mixed_stream(lmdb(split("a", 6), 1), tars(shards([4, 4, 4]), 2), lmdb(split("b", 3), 1))
    stream = pickle.loads(pickle.dumps(stream))
    for lane in range(num_lanes):
        whole = walk(stream, 24, lane=lane, num_lanes=num_lanes)
        for first in range(0, 24, 5):
            assert walk(stream, 24 - first, lane=lane, num_lanes=num_lanes, first=first) == whole[first:]


@pytest.mark.parametrize("num_lanes", [1, 2])
def test_an_epoch_of_the_lanes_has_each_set_by_its_share(
    split: Split, shards: Shards, num_lanes: int
) -> None:
    stream = mixed_stream(lmdb(split("a", 8)), tars(shards([4, 4])))
    assert (stream.num_pairs, stream.num_images) == (16, 16)
    captions = [
        pair.caption
        for lane in range(num_lanes)
        for pair in walk(stream, 32 // num_lanes, lane=lane, num_lanes=num_lanes)
        if isinstance(pair, RawPair)
    ]
    assert abs(sum(caption.startswith("a ") for caption in captions) - 16) <= num_lanes
    assert len(set(captions)) == 16


def test_ids_of_a_stream_and_a_source_stay_apart(split: Split, shards: Shards) -> None:
    pairs = [
        p for p in walk(mixed_stream(lmdb(split("a", 8)), tars(shards([8]))), 16) if isinstance(p, RawPair)
    ]
    assert len({pair.pair_id for pair in pairs}) == len({pair.caption for pair in pairs})


def test_a_bad_pair_of_a_member_is_passed_on(split: Split, shards: Shards) -> None:
    folder = shards([3, 3])
    stream = mixed_stream(tars(folder), lmdb(split("a", 6)))
    (folder / "00001.tar").write_bytes(b"")
    bad = [pair for pair in walk(stream, 12) if isinstance(pair, BadPair)]
    assert len(bad) == 3 and all("00001.tar is empty" in pair.reason for pair in bad)
    good_ids = {pair.pair_id for pair in walk(stream, 12) if isinstance(pair, RawPair)}
    assert all(pair.instead is not None and pair.instead.pair_id in good_ids for pair in bad)


def test_mixtures_that_cannot_be_are_refused(split: Split, shards: Shards) -> None:
    path = split("a", 2)
    with pytest.raises(ConfigError, match="sources of the mixture is empty"):
        mixed()
    with pytest.raises(ConfigError, match="give it to all, or to none"):
        mixed(lmdb(path, 1), lmdb(split("b", 2)))
    with pytest.raises(ConfigError, match="no pair among the 4 of an epoch"):
        mixed(lmdb(path, 1), lmdb(path, 1e-3))
    with pytest.raises(DataError, match="nowhere"):
        mixed(lmdb("/nowhere"))
