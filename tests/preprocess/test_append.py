"""Rows added to a split: whose pictures the new captions get, what comes twice, and what cannot be added to."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from cn_clip.data.store import PairRecord, SplitWriter, open_split
from cn_clip.preprocess.splits.build import BuildOptions, build_split
from cn_clip.preprocess.splits.known_pairs import KnownPairs
from cn_clip.preprocess.splits.split_files import find_splits

DOOR = "cn_clip/preprocess/build_lmdb_dataset.py"
Build = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def build(run_ours: Build) -> Build:
    def run(data_dir: Path, *words: object, splits: str = "train") -> subprocess.CompletedProcess[str]:
        return run_ours(DOOR, "--data_dir", data_dir, "--splits", splits, *words)

    return run


def pairs_of(split: Path) -> list[PairRecord]:
    pairs = open_split(split).pairs
    return [pairs.read(index) for index in range(len(pairs))]


def expect_error(done: subprocess.CompletedProcess[str], *parts: str) -> None:
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1, done.stderr
    for part in parts:
        assert part in done.stderr


def test_captions_are_never_tied_to_an_old_picture_whose_id_came_with_another_one(
    write_split: Callable[..., Path], build: Build, encode_picture: Callable[..., bytes]
) -> None:
    build(write_split("train", None, [(1, "红", [7])]))
    collided = {7: encode_picture((0, 9, 0)), 8: encode_picture((0, 8, 0))}
    data_dir = write_split("train", collided, [(11, "绿", [7]), (12, "也绿", [7, 8]), (13, "蓝", [12])])
    done = build(data_dir, "--append", "--bad_rows", "skip", "--max_bad_share", "1")
    assert done.returncode == 0, done.stderr
    assert "1 bad rows left out; 2 captions lost a picture" in done.stdout
    split = data_dir / "lmdb" / "train"
    assert pairs_of(split) == [PairRecord(7, 1, "红"), PairRecord(8, 12, "也绿"), PairRecord(12, 13, "蓝")]


def test_the_same_rows_again_add_nothing(write_split: Callable[..., Path], build: Build) -> None:
    data_dir = write_split()
    build(data_dir)
    before = pairs_of(data_dir / "lmdb" / "train")
    for _ in range(2):
        done = build(data_dir, "--append")
        assert done.returncode == 0, done.stderr
        assert "train: 0 pictures, 1 captions, 0 pairs; 2 repeated rows" in done.stdout
        assert "3 pairs that were there already kept once" in done.stdout
        assert "2 pictures and 3 pairs in all" in done.stdout
        assert pairs_of(data_dir / "lmdb" / "train") == before


@pytest.mark.parametrize("store_format", ["v2", "reference"])
def test_only_what_is_new_of_a_longer_file_is_added(
    write_split: Callable[..., Path], build: Build, store_format: str
) -> None:
    build(write_split("train", None, [(1, "红", [7]), (2, "蓝", [12])]), "--format", store_format)
    rows = [(1, "红", [7, 12]), (2, "天蓝", [12]), (2, "蓝", [12]), (4, "红", [7])]
    done = build(write_split("train", b"", rows), "--append", "--format", store_format)
    assert done.returncode == 0, done.stderr
    assert "0 pictures, 3 captions, 3 pairs; 2 pairs that were there already kept once" in done.stdout
    assert "1 captions have the text id of an older one with another text" in done.stdout
    assert pairs_of(write_split() / "lmdb" / "train")[2:] == [
        PairRecord(12, 1, "红"),
        PairRecord(12, 2, "天蓝"),
        PairRecord(7, 4, "红"),
    ]


def test_known_pairs_are_those_that_are_there(tmp_path: Path) -> None:
    there = [(i % 7, i % 5 - 2, f"文本{i % 3}") for i in range(60)] + [(2**63 - 1, -(2**63 - 1), "远")]
    with SplitWriter(tmp_path / "train") as writer:
        for pair in there:
            writer.add_pair(*pair)
    known = KnownPairs(open_split(tmp_path / "train").pairs)
    for image_id in (*range(-1, 8), 2**63 - 1):
        for text_id in (*range(-3, 4), -(2**63 - 1)):
            for text in ("文本0", "文本1", "文本2", "远", "没有"):
                found = known.find(text_id, text)
                assert found.has(image_id) == ((image_id, text_id, text) in there)
                texts = {other for _, other_id, other in there if other_id == text_id}
                assert found.has_other_text == (bool(texts) and text not in texts)


def test_there_must_be_a_split_to_add_to(write_split: Callable[..., Path], build: Build) -> None:
    data_dir = write_split()
    expect_error(
        build(data_dir, "--append"), f"no split {data_dir}/lmdb/train", "leave out --append", "--lmdb_dir"
    )
    assert not (data_dir / "lmdb").exists()
    (data_dir / "lmdb" / "train").mkdir(parents=True)
    expect_error(build(data_dir, "--append"), "leave out --append")


def test_nothing_is_added_when_a_later_split_is_missing(
    write_split: Callable[..., Path], build: Build
) -> None:
    build(write_split())
    write_split("train", b"", [(9, "新", [7])])
    data_dir = write_split("valid")
    expect_error(build(data_dir, "--append", splits="train,valid"), "lmdb/valid", "leave out --append")
    assert len(pairs_of(data_dir / "lmdb" / "train")) == 3


@pytest.mark.parametrize(("there", "given"), [("v2", "reference"), ("reference", "v2")])
def test_a_split_of_another_format_is_not_added_to(
    write_split: Callable[..., Path], build: Build, there: str, given: str
) -> None:
    data_dir = write_split()
    build(data_dir, "--format", there)
    inode = (data_dir / "lmdb" / "train" / "imgs" / "data.mdb").stat().st_ino
    expect_error(
        build(data_dir, "--append", "--format", given),
        f"lmdb/train has format {there}, not {given}: give --format {there}",
    )
    assert (data_dir / "lmdb" / "train" / "imgs" / "data.mdb").stat().st_ino == inode
    assert os.listdir(data_dir / "lmdb") == ["train"]


def test_a_split_that_a_kill_left_under_its_old_name_is_added_to(write_split: Callable[..., Path]) -> None:
    """Where two folders cannot change places in one step, a kill may leave the split under its hidden name."""
    data_dir = write_split()
    (files,) = find_splits(data_dir, "train")
    build_split(files, data_dir / "lmdb", BuildOptions(tokens=False))
    (data_dir / "lmdb" / "train").rename(data_dir / "lmdb" / ".train.old")
    report = build_split(files, data_dir / "lmdb", BuildOptions(tokens=False, append=True))
    assert (report.num_all_pairs, report.num_known_pairs) == (3, 3)
    assert os.listdir(data_dir / "lmdb") == ["train"]
