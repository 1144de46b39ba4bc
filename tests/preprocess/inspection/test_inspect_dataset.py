"""The command on small splits, each phenomenon put in by hand."""

from __future__ import annotations

import base64
import dataclasses
import json
import multiprocessing
import os
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import lmdb
import numpy as np
import pytest

from cn_clip.clip.tokenizer import caption_ids, tokenizer_fingerprint
from cn_clip.data.bad_rows import BadRow
from cn_clip.data.captions import preprocess_text, read_caption_rows
from cn_clip.data.store import PairColumns, SplitWriter
from cn_clip.errors import ConfigError, DataError
from cn_clip.preprocess import inspect_dataset
from cn_clip.preprocess.inspection import scan, table_source, unique_batch
from cn_clip.preprocess.inspection.collect import Options, inspect_data
from cn_clip.preprocess.inspection.lmdb_source import LmdbSource
from cn_clip.preprocess.inspection.report import CaptionGroup, SplitInspection
from cn_clip.preprocess.splits.picture_rows import read_pictures

Photo = Callable[..., bytes]
Write = Callable[..., Path]
DOOR = Path(inspect_dataset.__file__)


def inspect(data: Path, **options: object) -> SplitInspection:
    (split,) = inspect_data(data, Options(**options))[0].splits  # type: ignore[arg-type]  # by name, as a caller has them
    return split


@pytest.fixture
def pictures(photo: Photo) -> dict[int, bytes]:
    """Six photos, the first again under id 11, and again smaller under 12."""
    photos = {image_id: photo(image_id) for image_id in range(1, 7)}
    return photos | {11: photos[1], 12: photo(1, (200, 150), "PNG")}


CAPTIONS = [
    (1, "一只猫", [1]),
    (2, "一只猫", [2]),
    (3, "Red Shoes", [3]),
    (4, "red shoes", [4]),
    (5, "两张图", [5, 6]),
    (6, "长" * 60, [1]),
    (7, "耳机🎧", [11]),
    (8, "", [12]),
    (9, "缺图", [99]),
]


def without_effort(split: SplitInspection) -> SplitInspection:
    return dataclasses.replace(split, effort=None)  # type: ignore[arg-type]  # the only part that is measured


def check_facts(split: SplitInspection) -> None:
    counts, captions = split.counts, split.captions
    assert (counts.num_pictures, counts.num_captions, counts.num_pairs) == (8, 9, 10)
    assert counts.captions_per_picture is not None and counts.captions_per_picture.maximum == 2
    assert counts.pictures_per_caption is not None and counts.pictures_per_caption.maximum == 2
    assert (counts.missing_pictures, counts.num_pairs_without_picture) == ((99,), 1)
    assert counts.num_unused_pictures == 0
    assert [group.image_ids for group in split.equal_pictures.largest] == [(1, 11)]
    assert [group.image_ids for group in split.near_pictures.largest] == [(1, 12)]
    assert split.equal_captions.largest == (
        CaptionGroup(caption="一只猫", size=2, image_ids=(1, 2)),
        CaptionGroup(caption="Red Shoes", size=2, image_ids=(3, 4)),
    )
    assert captions.tokens is not None and captions.tokens.maximum == 62
    assert {cut.context_length: cut.num_cut for cut in captions.cuts}[52] == 1
    assert {cut.context_length: cut.num_cut for cut in captions.cuts}[64] == 0
    assert [(odd.shown, odd.count, odd.example) for odd in captions.unknown] == [("🎧", 1, "耳机🎧")]
    assert (captions.num_empty, captions.num_unknown) == (1, 1)
    assert split.pictures.formats == {"JPEG": 7, "PNG": 1}
    assert split.has_problems


def test_an_lmdb_split_is_described(pictures: dict[int, bytes], write_lmdb: Write) -> None:
    split = inspect(write_lmdb("train", pictures, CAPTIONS))
    assert (split.name, split.kind) == ("train", "LMDB")
    check_facts(split)


def test_a_split_of_the_reference_is_described_and_better_built_anew(
    pictures: dict[int, bytes], write_lmdb: Write
) -> None:
    split = inspect(write_lmdb("train", pictures, CAPTIONS, "reference"))
    check_facts(split)
    assert any("format of cn-clip 1.x" in advice.reason for advice in split.advice)


def test_tables_are_described_whatever_the_stretches_and_workers(
    pictures: dict[int, bytes], write_tables: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = write_tables("train", pictures, [*CAPTIONS, (10, "没有图", [])])
    whole = inspect(data)
    assert whole.counts.num_captions_without_ids == 1
    # one caption more than the LMDB has
    check_facts(
        dataclasses.replace(
            whole, counts=dataclasses.replace(whole.counts, num_captions=whole.counts.num_captions - 1)
        )
    )
    in_workers = inspect(data, workers=2)
    assert dataclasses.replace(in_workers, effort=whole.effort) == whole
    for num_bytes in (17, 1000, 20_001):
        monkeypatch.setattr(table_source, "_STRETCH_BYTES", num_bytes)
        assert without_effort(inspect(data)) == without_effort(whole)


def test_false_negatives_come_with_what_to_set(pictures: dict[int, bytes], write_lmdb: Write) -> None:
    split = inspect(write_lmdb("train", pictures, CAPTIONS), batches=(2, 5, 100))
    found = split.false_negatives
    assert found is not None
    # of 10 pairs: two and two share a text, two a text id, two a picture
    assert [risk.batch for risk in found.risks] == [2, 5]
    assert found.risks[0].share_of_negatives == pytest.approx(8 / 90)
    assert found.risks[0].share_of_pairs == pytest.approx(8 / 90)
    assert (found.same_picture_id, found.same_text_id, found.same_text) == (0.2, 0.2, 0.6)
    assert (found.largest_unique_batch, found.advised_unique_batch) == (5, 4)
    # picture 11 is picture 1, which two pairs have
    assert found.unseen_risks[0].share_of_negatives == pytest.approx(4 / 90)
    settings = [advice.setting for advice in split.advice]
    assert "loss.targets=positives" in settings and "data.sampler=unique" in settings
    assert "data.context_length=64" in settings
    plain = inspect(
        write_lmdb("plain", {1: pictures[1], 2: pictures[2]}, CAPTIONS[1:2] + CAPTIONS[5:6]), batches=(2,)
    )
    assert "loss.targets=diagonal" in [advice.setting for advice in plain.advice]


def test_the_advised_unique_batch_is_one_that_the_sampler_fills(photo: Photo, write_lmdb: Write) -> None:
    picture = photo(1, (16, 12))
    # 20 pictures with 15 captions each: their bound is 20, near which most batches cannot hold all pairs
    captions = [(number, f"第 {number} 条", [number // 15]) for number in range(300)]
    split = inspect(write_lmdb("train", dict.fromkeys(range(20), picture), captions), batches=(8, 32))
    found = split.false_negatives
    assert found is not None and found.largest_unique_batch == 20
    assert 2 <= found.advised_unique_batch < 20
    (unique,) = [advice for advice in split.advice if advice.setting == "data.sampler=unique"]
    assert f"about {found.advised_unique_batch}" in unique.reason and "20" in unique.reason
    high = inspect(Path(split.path), batches=(32, 64))
    assert "data.sampler=unique" not in [advice.setting for advice in high.advice]
    assert any(
        f"only up to a global batch of about {found.advised_unique_batch}" in a.reason for a in high.advice
    )


def test_what_is_said_of_equal_files_is_not_said_otherwise_too(photo: Photo, write_lmdb: Write) -> None:
    captions = [(number, f"第 {number} 条", [number]) for number in range(20)]
    split = inspect(write_lmdb("train", dict.fromkeys(range(20), photo(1)), captions), batches=(8,))
    about = [advice.reason for advice in split.advice if "of the pairs meet" in advice.reason]
    assert about == [
        "in a global batch of 8, 100.0 % of the pairs meet the same picture file under another picture id, which no "
        "setting can tell: give equal pictures one id"
    ]


def test_of_many_pairs_half_of_the_bound_is_advised(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unique_batch, "MAX_PAIRS", 299)
    ids = np.arange(300)
    assert unique_batch.advise_batch(PairColumns(ids // 15, ids, ids), 20) == 10
    assert unique_batch.advise_batch(PairColumns(ids // 300, ids, ids), 1) == 1


@pytest.mark.parametrize("format", ["v2", "reference"])
def test_batches_are_judged_by_all_pairs_of_a_sample_too(
    photo: Photo, write_lmdb: Write, format: str
) -> None:
    picture = photo(1, (16, 12))
    captions = [(number, f"第 {number} 条", [number // 3]) for number in range(60)]
    path = write_lmdb("train", dict.fromkeys(range(20), picture), captions, format)
    whole, sampled = inspect(path, batches=(8, 32)), inspect(path, batches=(8, 32), sample=10)
    assert whole.false_negatives is not None and sampled.false_negatives is not None
    assert sampled.false_negatives == dataclasses.replace(whole.false_negatives, unseen_risks=())
    assert sampled.num_sampled == 10 and whole.false_negatives.unseen_risks


def test_captions_without_picture_ids_are_no_problem_in_a_split_to_predict(
    pictures: dict[int, bytes], write_tables: Write
) -> None:
    split = inspect(write_tables("test", pictures, [(1, "一只猫", []), (2, "Red Shoes", [])]))
    assert not split.has_problems
    assert [advice.reason for advice in split.advice if "names a picture" in advice.reason]
    data = write_tables("none", pictures, [])
    assert inspect(data, split="none").has_problems


@pytest.mark.parametrize(("name", "is_problem"), [("test", False), ("MR_test", False), ("train", True)])
def test_an_lmdb_without_pairs_is_a_problem_unless_it_is_to_predict(
    pictures: dict[int, bytes], write_lmdb: Write, name: str, is_problem: bool
) -> None:
    assert inspect(write_lmdb(name, pictures, [])).has_problems == is_problem


def test_damaged_ids_of_a_sampled_split_are_told_and_nothing_stops(
    photo: Photo, write_lmdb: Write, caplog: pytest.LogCaptureFixture
) -> None:
    captions = [(number, f"第 {number} 条", [number]) for number in range(20)]
    path = write_lmdb("train", {number: photo(number, (16, 12)) for number in range(20)}, captions)
    change(path / "pairs", b"columns:0", b"x")
    found = inspect(path, sample=10, batches=(2, 15)).false_negatives
    assert found is not None and found.num_pairs == 10 and [risk.batch for risk in found.risks] == [2]
    assert "columns of the pairs" in caplog.text


def test_the_other_split_may_stand_beside(pictures: dict[int, bytes], write_lmdb: Write) -> None:
    train = write_lmdb("train", pictures, CAPTIONS)
    write_lmdb("valid", pictures, CAPTIONS[:2])
    overlap = inspect(train, against=Path("valid")).overlap
    assert overlap is not None and (overlap.other, overlap.num_equal) == ("valid", 8)
    with pytest.raises(DataError, match=r"--against.*tset.*has train, valid"):
        inspect(train, against=Path("tset"))


def test_a_table_may_be_named_by_either_file_and_another_file_is_told_what_to_do(
    pictures: dict[int, bytes], write_tables: Write
) -> None:
    data = write_tables("train", pictures, CAPTIONS[:2])
    for suffix in ("imgs.tsv", "texts.jsonl"):
        assert inspect(data / f"train_{suffix}").counts.num_pairs == 2
    (data / "00000.tar").write_bytes(b"")
    with pytest.raises(DataError, match="cn-clip import webdataset"):
        inspect(data / "00000.tar")


def test_damage_is_listed_and_nothing_stops(
    pictures: dict[int, bytes], photo: Photo, write_lmdb: Write
) -> None:
    bad = pictures | {20: photo(20)[:900], 21: b"text", 22: photo(22)}
    path = write_lmdb("train", bad, [(1, "一", [1]), (2, "二", [20])])
    change(path / "imgs", b"5", photo(55))
    split = inspect(path)
    assert [fault.where for fault in split.pictures.undecodable.examples] == ["picture 20", "picture 21"]
    # a change on the disk, found by the digest
    assert [fault.where for fault in split.pictures.unreadable.examples] == ["picture 5"]
    assert split.counts.num_unused_pictures == 9
    assert [advice.setting for advice in split.advice if advice.level == "problem"] == [
        "data.bad_pairs=skip",
        "",
    ]


def change(folder: Path, key: bytes, value: bytes) -> None:
    with lmdb.open(str(folder), map_size=1 << 26) as env, env.begin(write=True) as transaction:
        transaction.put(key, value)


def test_bad_rows_are_named_by_their_line(
    pictures: dict[int, bytes], write_tables: Write, photo: Photo
) -> None:
    rows = b"\n7\n" + b"8\t####\n" + b"a.jpg\tAAAA\n" + b"1\t" + base64.b64encode(photo(77)) + b"\n"
    rows += b"2\t" + base64.b64encode(pictures[2]) + b"\n" + b"9\t" + base64.b64encode(b"text")
    data = write_tables(
        "train",
        pictures,
        CAPTIONS,
        rows,
        b'\n{"text_id": 1}\n[]\n{"text_id": 1.5, "text": "", "image_ids": []}\n{"te',
    )
    split = inspect(data)
    assert [(fault.where, fault.reason) for fault in split.pictures.unreadable.examples] == [
        ("train_imgs.tsv row 10", "it has 1 column, not 2"),
        ("train_imgs.tsv row 11, picture 8", split.pictures.unreadable.examples[1].reason),
        ("train_imgs.tsv row 12", "the id 'a.jpg' is not a whole number of 64 bits"),
        ("train_imgs.tsv row 13, picture 1", "its id was given before with another picture"),
    ]
    assert "base64" in split.pictures.unreadable.examples[1].reason
    assert [fault.where for fault in split.pictures.undecodable.examples] == [
        "train_imgs.tsv row 15, picture 9"
    ]
    assert split.pictures.num_repeated_rows == 1
    assert [fault.where for fault in split.captions.bad_rows.examples] == [
        f"train_texts.jsonl row {row}" for row in (11, 12, 13, 14)
    ]


def test_rows_are_judged_as_the_build_judges_them(
    pictures: dict[int, bytes], write_tables: Write, tmp_path: Path
) -> None:
    rows = [
        '{"text_id": 1, "text": "一", "image_ids": [1]}\u3000',
        '{"text_id": 2, "text": "二", "image_ids": [2]}\x85',
        '{"text_id": 3, "text": "三", "image_ids": [1]}\x1c',
        '\x1c{"text_id": 4, "text": "四", "image_ids": [1]}',
        ' \t{"text_id": 5, "text": "五", "image_ids": [1]}\v\f\r',
        '{"text_id": 6, "text": 6, "image_ids": [1]}',
        '{"text_id": 7, "text": "七"}',
        '{"text_id": true, "text": "八", "image_ids": [1]}',
        '{"text_id": 9, "text": "九", "image_ids": [9223372036854775808]}',
        '{"text_id": 10, "text": "十", "image_ids": null}',
        '{"text_id": 011, "text": "十", "image_ids": [1]}',
        '{"text_id": 12, "text": true, "image_ids": [1]}',
        '{"text_id": 13, "text": NaN, "image_ids": [1]}',
        "[" * 100_000,
        '{"text_id": ' + "1" * 5000 + ', "text": "", "image_ids": []}',
        "\x1c",
        "\u3000",
    ]
    tail = "".join(f"{row}\n" for row in rows).encode() + b"\xff\n" + b'{"text_id": 19'
    # base64 of either alphabet, or of both in one row
    picture = base64.b64encode(b"\xff\xef\xbe" * 9 + pictures[1]).translate(bytes.maketrans(b"+", b"-"))
    data = write_tables("train", pictures, CAPTIONS, b"90\t" + picture + b"\n91\tAA=A\n", tail)
    split = inspect(data)
    judged = read_caption_rows(tmp_path / "train_texts.jsonl", labelled=False)
    bad = [(row.row, row.reason) for row in judged if isinstance(row, BadRow)]
    assert [
        (int(fault.where.rpartition(" ")[2]), fault.reason) for fault in split.captions.bad_rows.examples
    ] == bad
    assert len(bad) >= 8
    built = [
        row
        for block in read_pictures(tmp_path / "train_imgs.tsv")
        for row in block.rows
        if isinstance(row, BadRow)
    ]
    seen = [*split.pictures.unreadable.examples, *split.pictures.undecodable.examples]
    assert sorted(fault.where for fault in seen) == sorted(
        f"train_imgs.tsv row {row.row}, picture {row.image_id}" for row in built
    )


def test_what_two_splits_share_is_found(
    pictures: dict[int, bytes], photo: Photo, write_tables: Write
) -> None:
    write_tables("train", pictures, CAPTIONS)
    valid = {1: photo(100), 2: pictures[2], 3: photo(4, (400, 300), quality=70), 4: photo(101)}
    data = write_tables("valid", valid, [(1, "一只猫", [1]), (2, "新", [2]), (3, "RED shoes", [3, 4])])
    report = inspect_data(data, Options(against=Path("valid")))[0]
    train, seen = report.splits
    assert seen.overlap is None
    overlap = train.overlap
    assert overlap is not None
    assert (overlap.num_equal, overlap.num_near, overlap.num_captions) == (1, 1, 4)
    assert [(pair.image_id, pair.other_id) for pair in (*overlap.equal, *overlap.near)] == [(2, 2), (4, 3)]
    assert (overlap.share_of_pictures, overlap.share_of_captions) == (0.5, pytest.approx(2 / 3))
    assert any("valid are here too" in advice.reason for advice in train.advice)
    by_path = inspect(data, split="train", against=data / "valid")
    assert by_path.overlap == overlap


@pytest.mark.parametrize("kind", ["tables", "lmdb"])
def test_a_sample_is_drawn_by_its_seed(
    kind: str, photo: Photo, write_lmdb: Write, write_tables: Write
) -> None:
    pictures = {image_id: photo(image_id, (80, 60)) for image_id in range(40)}
    captions = [(image_id, f"第{image_id}张", [image_id]) for image_id in range(40)]
    data = (
        write_lmdb("train", pictures, captions)
        if kind == "lmdb"
        else write_tables("train", pictures, captions)
    )
    first = inspect(data, sample=10, seed=1)
    assert (first.num_sampled, first.counts.num_pictures, first.counts.num_missing_pictures) == (10, 10, 0)
    assert first.counts.num_unused_pictures == 0
    assert without_effort(inspect(data, sample=10, seed=1)) == without_effort(first)
    assert {one.image_id for one in inspect(data, sample=10, seed=2).examples} != {
        one.image_id for one in first.examples
    }
    assert inspect(data, sample=40).num_sampled is None


def test_cached_tokens_are_compared_with_the_captions(tmp_path: Path, photo: Photo) -> None:
    def write(tokenizer: str, wrong: int) -> Path:
        with SplitWriter(tmp_path / "train", tokenizer=tokenizer) as writer:
            writer.add_image(1, photo(1), "a test", size=(320, 240))
            for number in range(6):
                caption = f"第 {number} 张 ABC"
                shown = caption if number >= wrong else "别的"
                writer.add_pair(1, number, caption, caption_ids(preprocess_text(shown)))
        return tmp_path / "train"

    assert inspect(write(tokenizer_fingerprint(), wrong=0)).captions.num_stale_tokens == 0
    assert inspect(write(tokenizer_fingerprint(), wrong=2)).captions.num_stale_tokens == 2
    other = inspect(write("another tokenizer", wrong=2))
    assert other.captions.num_stale_tokens is None
    assert any("another tokenizer" in advice.reason for advice in other.advice)


def test_every_split_of_a_folder_is_inspected(pictures: dict[int, bytes], write_lmdb: Write) -> None:
    write_lmdb("train", pictures, CAPTIONS)
    folder = write_lmdb("valid", pictures, CAPTIONS[:1]).parent
    assert [split.name for split in inspect_data(folder, Options())[0].splits] == ["train", "valid"]
    assert inspect(folder, split="valid").counts.num_pairs == 1


def test_the_command_prints_writes_and_fails_only_when_strict(
    pictures: dict[int, bytes], write_lmdb: Write, tmp_path: Path
) -> None:
    path = write_lmdb("train", pictures, CAPTIONS)

    def run(*words: object) -> subprocess.CompletedProcess[str]:
        return subprocess.run([sys.executable, str(DOOR), *map(str, words)], capture_output=True, text=True)

    done = run(path, "--json", tmp_path / "r.json", "--html", tmp_path / "r.html", "--workers", 2)
    assert done.returncode == 0, done.stderr
    assert "8 pictures, 9 captions, 10 pairs" in done.stdout
    assert "PROBLEM" in done.stdout and "data.context_length=64" in done.stdout
    (split,) = json.loads((tmp_path / "r.json").read_text())["splits"]
    assert split["counts"]["missing_pictures"] == [99]
    strict = run(path, "--strict", "--workers", 1)
    assert strict.returncode == 2
    assert strict.stderr.startswith("error: --strict")
    fine = write_lmdb("fine", {1: pictures[1]}, [(1, "一只猫", [1])])
    assert run(fine, "--strict", "--workers", 1).returncode == 0


@pytest.mark.skipif(multiprocessing.get_start_method() != "fork", reason="the change must reach the workers")
def test_a_worker_that_dies_is_told_with_what_it_read(
    pictures: dict[int, bytes], write_lmdb: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_lmdb("train", pictures, CAPTIONS)
    monkeypatch.setattr(scan, "look_at", lambda picture: os._exit(9))
    with pytest.raises(DataError, match=r"train pictures .* fewer --workers"):
        inspect(path, workers=2)


def test_wrong_input_gets_one_sentence(
    write_tables: Write, pictures: dict[int, bytes], tmp_path: Path
) -> None:
    data = write_tables("train", pictures, CAPTIONS)
    write_tables("valid", pictures, CAPTIONS)
    for words, part in (
        ([tmp_path / "nothing"], "does not exist"),
        ([data, "--split", "test"], "has train, valid"),
        ([tmp_path / "lmdb" / "train"], "build it with build_lmdb_dataset.py"),
        ([data, "--against", data], "has several splits"),
        ([data, "--near-distance", "20"], "--near-distance is 20"),
        ([data, "--sample", "0"], "--sample is 0"),
        ([data, "--batch", "1"], "--batch is 1"),
        ([data, "--json", tmp_path / "no" / "x.json"], "make it first"),
    ):
        with pytest.raises((DataError, ConfigError), match=part):
            inspect_dataset.main([*map(str, words), "--workers", "1"])
    (tmp_path / "train_texts.jsonl").unlink()
    with pytest.raises(DataError, match=r"train_texts\.jsonl does not exist"):
        inspect_dataset.main([str(data), "--workers", "1"])


def test_the_ids_of_a_store_are_never_all_in_a_list(write_lmdb: Write) -> None:
    path = write_lmdb("train", dict.fromkeys(range(1_000_000, 1_050_000), b"picture"), [(1, "一", [1])])
    source = LmdbSource(path)
    tracemalloc.start()
    stretches = source.picture_stretches(None)
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert sum(stretch.weight for stretch in stretches) == 50_000
    # 8 bytes an id, and a Stretch for every 64 of them; a list of numbers takes 40 an id
    assert peak_bytes < 30 * 50_000
