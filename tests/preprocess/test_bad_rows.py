"""Bad rows left out: what is kept, what is written down, and when there are too many."""

from __future__ import annotations

import base64
import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from cn_clip.data.store import PairRecord, SplitWriter, open_split
from cn_clip.data.store.replacement import Replacement
from cn_clip.errors import DataError
from cn_clip.preprocess.splits.bad_row_log import BadRowLog
from cn_clip.preprocess.splits.build import BuildOptions, build_split
from cn_clip.preprocess.splits.split_files import find_splits

DOOR = "cn_clip/preprocess/build_lmdb_dataset.py"
Build = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def skip(run_ours: Build) -> Build:
    def run(data_dir: Path, *words: object) -> subprocess.CompletedProcess[str]:
        return run_ours(DOOR, "--data_dir", data_dir, "--splits", "train", "--bad-rows", "skip", *words)

    return run


@pytest.fixture
def tsv(encode_picture: Callable[..., bytes]) -> bytes:
    """Rows 1, 2, 4 and 7 are good; pictures 8 and 9 are not, and 7 comes again as another one."""
    red, blue = (base64.b64encode(encode_picture(colour)) for colour in ((255, 0, 0), (0, 0, 255)))
    return b"\n".join(
        [b"7\t" + red, b"1\t" + red, b"8\t" + red[:40], b"2\t" + blue, b"dog.jpg\t" + red, b"7\t" + blue]
        + [b"3\t" + red, b"9\tYWJj"]
    )


def test_what_is_left_out_is_written_down(
    write_split: Callable[..., Path], skip: Build, tsv: bytes, tmp_path: Path
) -> None:
    captions = [(1, "a", [7]), (2, "b", [8, 7]), (3, "c", [9]), (4, "d", [1, 404])]
    write_split("train", tsv, captions)
    with (tmp_path / "train_texts.jsonl").open("ab") as file:
        file.write(
            b'{"text_id": 5, "text": "e"}\n{"text_id": 6, "text": "f", "image_ids": [3]}\n{"text_id": 7, '
        )
    done = skip(tmp_path, "--max-bad-share", "0.9")
    assert done.returncode == 0, done.stderr
    bad_rows = tmp_path / "lmdb" / "train.bad_rows.jsonl"
    assert "4 pictures, 5 captions, 2 pairs" in done.stdout
    assert f"6 bad rows left out; 4 captions lost a picture; listed in {bad_rows} (" in done.stdout
    rows = [json.loads(line) for line in bad_rows.read_text(encoding="utf-8").splitlines()]
    assert [(Path(row["file"]).name, row["row"], row["column"]) for row in rows] == [
        ("train_texts.jsonl", 5, None),
        ("train_texts.jsonl", 7, 15),
        ("train_imgs.tsv", 3, 2),
        ("train_imgs.tsv", 5, 1),
        ("train_imgs.tsv", 6, 1),
        ("train_imgs.tsv", 8, 2),
        ("train_texts.jsonl", 4, "image_ids"),
    ]
    assert "field image_ids is missing" in rows[0]["reason"]
    assert "not a whole number" in rows[3]["reason"]
    assert rows[4]["reason"].startswith("id 7 was given before with other content")
    assert "(404)" in rows[6]["reason"]
    split = open_split(tmp_path / "lmdb" / "train")
    pairs = [split.pairs.read(index) for index in range(len(split.pairs))]
    # which of the two pictures 7 the captions mean cannot be known
    assert pairs == [PairRecord(1, 4, "d"), PairRecord(3, 6, "f")]


def test_too_many_are_refused(write_split: Callable[..., Path], skip: Build, tsv: bytes) -> None:
    data_dir = write_split("train", tsv, [(1, "a", [7])])
    done = skip(data_dir)
    assert done.returncode == 2
    assert "train_imgs.tsv: 4 of 8 rows are bad, which is more than --max-bad-share 0.01" in done.stderr
    assert "the first is" in done.stderr and "row 3" in done.stderr and done.stderr.count("\n") == 1
    assert os.listdir(data_dir / "lmdb") == ["train.bad_rows.jsonl"]
    assert len((data_dir / "lmdb" / "train.bad_rows.jsonl").read_bytes().splitlines()) == 4


def test_too_many_captions_are_refused(write_split: Callable[..., Path], skip: Build) -> None:
    data_dir = write_split("train", None, [(1, "a", [7]), (2, "b", [404]), (3, "c", [405, 7])])
    done = skip(data_dir, "--max_bad_share", "0.5")
    assert done.returncode == 2
    assert "train_texts.jsonl: 2 of 3 rows are bad" in done.stderr


def test_a_caption_that_keeps_a_picture_is_not_left_out(
    write_split: Callable[..., Path], skip: Build, tmp_path: Path
) -> None:
    """One that keeps none is; either is listed, and counts towards the share."""
    write_split("train", None, [(1, "a", [7]), (2, "b", [7, 999]), (3, "c", [404])])
    done = skip(tmp_path, "--max_bad_share", "0.7")
    assert done.returncode == 0, done.stderr
    bad_rows = tmp_path / "lmdb" / "train.bad_rows.jsonl"
    counts = "2 captions, 2 pairs; 1 bad rows left out; 1 captions lost a picture"
    assert f"{counts}; listed in {bad_rows} (" in done.stdout
    rows = [json.loads(line) for line in bad_rows.read_text(encoding="utf-8").splitlines()]
    assert [(row["row"], row["column"]) for row in rows] == [(2, "image_ids"), (3, "image_ids")]
    split = open_split(tmp_path / "lmdb" / "train")
    assert [split.pairs.read(index).caption for index in range(len(split.pairs))] == ["a", "b"]
    assert skip(tmp_path, "--max_bad_share", "0.6").returncode == 2


def test_captions_that_lost_a_picture_are_listed_without_a_row_left_out(
    write_split: Callable[..., Path], skip: Build, tmp_path: Path
) -> None:
    write_split("train", None, [(1, "a", [7]), (2, "b", [7, 999])])
    done = skip(tmp_path, "--max_bad_share", "0.5")
    bad_rows = tmp_path / "lmdb" / "train.bad_rows.jsonl"
    assert f"2 captions, 2 pairs; 1 captions lost a picture; listed in {bad_rows} (" in done.stdout
    assert len(bad_rows.read_bytes().splitlines()) == 1


def test_a_long_file_is_refused_before_its_end(
    write_split: Callable[..., Path], skip: Build, tmp_path: Path, tsv: bytes
) -> None:
    write_split("train", None, [(1, "a", [7])])
    row = tsv.splitlines()[0] + b"\n"
    with (tmp_path / "train_imgs.tsv").open("wb") as file:
        file.writelines(row if number % 4 else b"bad\n" for number in range(60_000))
    done = skip(tmp_path)
    assert done.returncode == 2
    num_seen = int(done.stderr.split(" rows are bad")[0].rpartition(" of ")[2])
    assert 10_000 <= num_seen < 60_000


def test_the_list_of_an_earlier_build_goes(write_split: Callable[..., Path], skip: Build) -> None:
    data_dir = write_split("train", None, [(1, "a", [7]), (2, "b", [404])])
    assert skip(data_dir, "--max_bad_share", "0.5").returncode == 0
    assert sorted(os.listdir(data_dir / "lmdb")) == ["train", "train.bad_rows.jsonl"]
    assert skip(write_split("train", None, [(1, "a", [7])])).returncode == 0
    assert os.listdir(data_dir / "lmdb") == ["train"]


def test_a_build_that_fails_at_its_end_leaves_the_list_of_the_split_that_stays(
    write_split: Callable[..., Path], skip: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    data_dir = write_split("train", None, [(1, "a", [7]), (2, "b", [404])])
    assert skip(data_dir, "--max_bad_share", "0.5").returncode == 0
    bad_rows = data_dir / "lmdb" / "train.bad_rows.jsonl"
    old = bad_rows.read_bytes()

    def refuse(writing: Replacement) -> None:
        raise DataError("no room at the very end")

    monkeypatch.setattr(Replacement, "commit", refuse)
    for captions in ([(1, "a", [7])], [(1, "a", [7]), (2, "b", [404]), (3, "c", [405])]):
        write_split("train", None, captions)
        (files,) = find_splits(data_dir, "train")
        with pytest.raises(DataError, match="very end"):
            build_split(
                files, data_dir / "lmdb", BuildOptions(bad_rows="skip", max_bad_share=1, tokens=False)
            )
        assert bad_rows.read_bytes() == old
        assert sorted(os.listdir(data_dir / "lmdb")) == ["train", "train.bad_rows.jsonl"]


def test_the_list_comes_while_no_other_build_may(
    write_split: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    data_dir = write_split("train", None, [(1, "a", [7]), (2, "b", [404])])
    publish = BadRowLog.publish
    published = []

    def watched(log: BadRowLog) -> None:
        assert len(open_split(data_dir / "lmdb" / "train").pairs) == 1
        with pytest.raises(DataError, match="another process"), SplitWriter(data_dir / "lmdb" / "train"):
            pass
        publish(log)
        published.append(log.path)

    monkeypatch.setattr(BadRowLog, "publish", watched)
    (files,) = find_splits(data_dir, "train")
    build_split(files, data_dir / "lmdb", BuildOptions(bad_rows="skip", max_bad_share=1, tokens=False))
    assert published == [data_dir / "lmdb" / "train.bad_rows.jsonl"]


def test_a_failed_write_is_no_bad_row(write_split: Callable[..., Path], skip: Build, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = skip(write_split(), "--lmdb_dir", tmp_path / "file" / "lmdb")
    assert done.returncode == 2
    assert "cannot write into" in done.stderr
