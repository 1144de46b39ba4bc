"""Captions that look right and are wrong: from the JSONL to the batch."""

from __future__ import annotations

from pathlib import Path

import pytest

from cn_clip.clip.tower_tokenizer import TowerTokenizer
from cn_clip.data.batches import Collate, Pair
from cn_clip.data.captions import read_captions
from cn_clip.data.pair_dataset import ReadPair
from cn_clip.data.pairs import RawPair
from cn_clip.data.store import SplitWriter, open_split
from cn_clip.errors import ConfigError, DataError

import torch  # isort: skip


def raw(*negatives: str) -> RawPair:
    return RawPair(b"", 1, 2, "红色的车", 3, hard_negatives=negatives)


def reader(num: int) -> ReadPair:
    return ReadPair(read_image=lambda data: torch.zeros(3, 4, 4), seed=0, num_negatives=num)


def pair(read: ReadPair, made: RawPair, epoch: int = 0) -> Pair:
    found = read(made, epoch, 0)
    assert isinstance(found, Pair)
    return found


def test_rows_may_have_them(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text_id": 1, "text": "红", "image_ids": [1], "hard_negatives": ["蓝", "绿"]}\n')
    (caption,) = read_captions(path)
    assert caption.hard_negatives == ("蓝", "绿")
    path.write_text('{"text_id": 1, "text": "红", "image_ids": [1], "hard_negatives": "蓝"}\n')
    with pytest.raises(DataError, match="hard_negatives: '蓝' is not a list of texts"):
        list(read_captions(path))


def test_a_store_keeps_them_and_longer_ones_too(tmp_path: Path) -> None:
    split = tmp_path / "train"
    with SplitWriter(split) as writer:
        writer.add_image(1, b"picture")
        writer.add_pair(1, 1, "红", hard_negatives=["蓝"])
    with SplitWriter(split, append=True) as writer:
        writer.add_pair(1, 2, "绿")
    pairs = open_split(split).pairs
    assert [pairs.read(index).hard_negatives for index in range(2)] == [("蓝",), ()]


def test_the_reference_s_format_has_no_place_for_them(tmp_path: Path) -> None:
    with (
        pytest.raises(ConfigError, match="no place for hard_negatives"),
        SplitWriter(tmp_path / "train", "reference") as writer,
    ):
        writer.add_image(1, b"picture")
        writer.add_pair(1, 1, "红", hard_negatives=["蓝"])


def test_more_than_are_taken_come_in_turn() -> None:
    read, made = reader(2), raw("甲", "乙", "丙")
    assert [pair(read, made, epoch).hard_negatives for epoch in range(3)] == [
        ("甲", "乙"),
        ("丙", "甲"),
        ("乙", "丙"),
    ]
    assert pair(reader(0), made).hard_negatives == ()


def test_a_batch_has_as_many_for_each_pair_and_knows_the_fillers() -> None:
    pairs = [pair(reader(2), made) for made in (raw("蓝色的车", "绿"), raw("黑"), raw())]
    batch = Collate(TowerTokenizer(context_length=16), num_negatives=2)(pairs)
    assert not isinstance(batch, type(None)) and batch.negatives is not None
    assert batch.negatives.is_filler_K.tolist() == [False, False, False, True, True, True]
    assert batch.negatives.tokens_KL.shape == (6, 6)
    first, second = batch.split([1, 2], pad_id=0)
    assert first.negatives is not None and second.negatives is not None
    assert first.negatives.is_filler_K.tolist() == [False, False]
    assert second.negatives.tokens_KL.shape == (4, 3)  # the long one is in the first
    assert Collate(TowerTokenizer(context_length=16))(pairs).negatives is None
