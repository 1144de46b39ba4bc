"""Pairs of a split: all of them, or one caption for each picture and epoch."""

from __future__ import annotations

import pickle
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from cn_clip.data.captions import caption_key
from cn_clip.data.pairs import PairSource, lmdb_pairs
from cn_clip.data.store import SplitWriter
from cn_clip.errors import DataError

COUNTS = {30: 1, 10: 3, 20: 5}
"""Captions of each picture."""


@pytest.fixture(scope="module")
def split(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("lmdb") / "train"
    with SplitWriter(path, tokenizer="some") as writer:
        for image_id, count in COUNTS.items():
            writer.add_image(image_id, b"picture %d" % image_id, "made")
            for number in range(count):
                writer.add_pair(image_id, 100 * image_id + number, f"{image_id}的第{number}句", [number, 7])
    return path


def build(path: Path, **options: str) -> PairSource:
    source = lmdb_pairs.build(lmdb_pairs.Options(path=str(path), **options))  # type: ignore[arg-type]  # tried below
    assert isinstance(source, PairSource)
    return source


def test_every_pair_with_its_picture_and_cached_ids(split: Path) -> None:
    source = build(split)
    assert (len(source), source.num_images) == (9, 3)
    pair = source.read(2, epoch=5, seed=1)
    assert (pair.image_bytes, pair.image_id, pair.text_id, pair.caption, pair.pair_id) == (
        b"picture 10", 10, 1001, "10的第1句", 2,
    )  # fmt: skip
    assert pair.tokenizer == "some" and pair.token_ids is not None and pair.token_ids.tolist() == [1, 7]


@pytest.mark.parametrize("captions", ["all", "one"])
def test_columns_are_what_is_read(split: Path, captions: str) -> None:
    source = build(split, captions=captions)
    for epoch in (0, 3):
        columns = source.columns(epoch=epoch, seed=4)
        pairs = [source.read(index, epoch=epoch, seed=4) for index in range(len(source))]
        assert columns.image_ids.tolist() == [pair.image_id for pair in pairs]
        assert columns.text_ids.tolist() == [pair.text_id for pair in pairs]
        assert columns.caption_keys.tolist() == [caption_key(pair.caption) for pair in pairs]


def test_one_caption_for_each_picture_drawn_anew_each_epoch(split: Path) -> None:
    source = build(split, captions="one")
    assert len(source) == source.num_images == 3
    drawn = {
        image_id: Counter(
            pair.text_id
            for epoch in range(600)
            for pair in (source.read(index, epoch=epoch, seed=4),)
            if pair.image_id == image_id
        )
        for index, image_id in enumerate(sorted(COUNTS))
    }
    for image_id, texts in drawn.items():
        assert sum(texts.values()) == 600
        assert len(texts) == COUNTS[image_id]
        assert min(texts.values()) > 600 / COUNTS[image_id] * 0.7
    again = [source.read(0, epoch=9, seed=4).text_id for _ in range(2)]
    assert again[0] == again[1]


def test_pictures_of_one_size_draw_independently(tmp_path: Path) -> None:
    with SplitWriter(tmp_path / "many") as writer:
        for image_id in range(200):
            writer.add_image(image_id, b"x", "made")
            for number in range(2):
                writer.add_pair(image_id, 2 * image_id + number, "a")
    source = build(tmp_path / "many", captions="one")
    draws = np.stack([source.columns(epoch=epoch, seed=0).text_ids % 2 for epoch in range(50)]).astype(float)
    together = np.corrcoef(draws.T)[np.triu_indices(200, 1)]
    assert abs(draws.mean() - 0.5) < 0.02 and np.abs(together).mean() < 0.2


@pytest.mark.parametrize("captions", ["all", "one"])
def test_it_travels_to_worker_processes(split: Path, captions: str) -> None:
    source = build(split, captions=captions)
    source.read(0, epoch=0, seed=0)
    copy = pickle.loads(pickle.dumps(source))
    assert copy.read(1, epoch=2, seed=3).caption == source.read(1, epoch=2, seed=3).caption


def test_a_wrong_path_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is not a folder"):
        build(tmp_path / "nowhere")
