"""Streams of tar shards: what is read, in which order, from where, and what is said of broken ones."""

from __future__ import annotations

import gzip
import json
import os
import pickle
import shutil
import tarfile
import tracemalloc
from collections import Counter
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import pytest

from cn_clip.data.pairs import BadPair, RawPair
from cn_clip.data.tars import counts as tar_counts
from cn_clip.data.tars import samples as tar_samples
from cn_clip.errors import ConfigError, DataError
from tests.data.pairs.conftest import numbers, open_tars, png, walk, write_tar

Shards = Callable[..., Path]


def test_pairs_are_as_the_webdataset_package_wrote_them(tmp_path: Path) -> None:
    webdataset = pytest.importorskip("webdataset")
    long_name = "长" * 60
    with webdataset.TarWriter(str(tmp_path / "a.tar")) as writer:
        writer.write({"__key__": "x/000", "jpg": png(1), "txt": "一", "json": {"image_id": 5, "text_id": 9}})
        writer.write({"__key__": long_name, "png": png(2), "txt": "二", "cls": b"3"})
    first, second = walk(open_tars(tmp_path / "a.tar", shuffle=1), 2)
    assert isinstance(first, RawPair) and isinstance(second, RawPair)
    assert (first.image_bytes, first.caption, first.image_id, first.text_id) == (png(1), "一", 5, 9)
    assert (second.image_bytes, second.caption) == (png(2), "二")
    assert long_name in second.where and first.pair_id != second.pair_id
    theirs = [
        sample["__key__"] for sample in webdataset.WebDataset(str(tmp_path / "a.tar"), shardshuffle=False)
    ]
    assert theirs == ["x/000", long_name]


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_every_tar_format_with_long_names_and_members_that_are_no_sample(tmp_path: Path, form: int) -> None:
    key = "folder/" * 14 + "0"
    members = {
        "README": b"no sample",
        ".hidden.jpg": b"",
        f"{key}.jpg": png(1),
        f"{key}.txt": b"one",
        "1.JPG": png(2),
        "1.txt": b" two\n",
        "1.seg.png": b"another extension",
    }
    with tarfile.open(write_tar(tmp_path / "a.tar", members, format=form), "a", format=form) as tar:
        tar.addfile(tarfile.TarInfo("link.jpg"), None)
        folder = tarfile.TarInfo("folder.jpg")
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
    pairs = walk(open_tars(tmp_path / "a.tar", shuffle=1), 3)
    assert [pair.caption for pair in pairs if isinstance(pair, RawPair)] == ["one", "two"]
    assert isinstance(pairs[2], BadPair) and "sample link" in pairs[2].reason


def test_captions_come_from_a_field_of_the_json_too(shards: Shards) -> None:
    (pair,) = walk(open_tars(shards([1]), caption="json.caption"), 1)
    assert isinstance(pair, RawPair) and pair.caption == "说明 0"


@pytest.mark.parametrize("num_lanes", [1, 2, 3, 4, 6, 8, 12])
@pytest.mark.parametrize("sizes", [[24], [24] * 2, [24] * 3, [24] * 8, [24] * 12])
def test_lanes_share_an_epoch_evenly(shards: Shards, sizes: list[int], num_lanes: int) -> None:
    stream = open_tars(shards(sizes), shuffle=5)
    per_lane = sum(sizes) // num_lanes
    lanes = [numbers(walk(stream, 2 * per_lane, lane=lane, num_lanes=num_lanes)) for lane in range(num_lanes)]
    for epoch in range(2):
        part = [number for lane in lanes for number in lane[epoch * per_lane : (epoch + 1) * per_lane]]
        assert sorted(part) == list(range(sum(sizes)))


def test_each_epoch_and_seed_has_another_order(shards: Shards) -> None:
    stream = open_tars(shards([5, 5, 5]), shuffle=4)
    twice = numbers(walk(stream, 30))
    assert twice[:15] != twice[15:]
    assert twice == numbers(walk(stream, 30)) != numbers(walk(stream, 30, seed=8))
    assert numbers(walk(open_tars(shards([9], name="b"), shuffle=1), 18)) == [*range(9), *range(9)]


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize(("sizes", "num_lanes"), [([3, 7, 5], 1), ([3, 7, 5, 1], 3), ([7, 2], 5), ([2], 4)])
def test_a_lane_can_be_entered_anywhere(
    shards: Shards, sizes: list[int], num_lanes: int, known: bool
) -> None:
    stream = open_tars(shards(sizes, stats=known), shuffle=4, num_pairs=None if known else 10)
    for lane in range(num_lanes):
        whole = walk(stream, 40, lane=lane, num_lanes=num_lanes)
        for first in range(40):
            assert walk(stream, 40 - first, lane=lane, num_lanes=num_lanes, first=first) == whole[first:]


@pytest.mark.parametrize("stats", [True, False])
def test_shards_before_the_place_are_not_opened(
    shards: Shards, monkeypatch: pytest.MonkeyPatch, stats: bool
) -> None:
    folder = shards([4] * 10, stats=stats)
    monkeypatch.chdir(folder)
    stream = pickle.loads(pickle.dumps(open_tars("./*.tar", shuffle=2)))
    whole = numbers(walk(stream, 40))
    for shard in {number // 4 for number in whole[:32]}:
        (folder / f"{shard:05}.tar").unlink()
    assert numbers(walk(stream, 8, first=32)) == whole[32:]


def test_a_lane_holds_one_block(tmp_path: Path) -> None:
    members = {}
    for number in range(120):
        members |= {f"{number:03}.jpg": os.urandom(100_000), f"{number:03}.txt": b"a"}
    stream = open_tars(write_tar(tmp_path / "a.tar", members), shuffle=8)
    tracemalloc.start()
    for _ in islice(stream.lane(0, 1, first=3, seed=1), 240):
        pass
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak_bytes < 12 * 100_000


def test_a_shard_of_fewer_samples_than_lanes_starves_none(shards: Shards) -> None:
    stream = open_tars(shards([2]))
    seen = [Counter(numbers(walk(stream, 8, lane=lane, num_lanes=5))) for lane in range(5)]
    assert all(set(count) == {0, 1} for count in seen)


def test_samples_are_counted_from_headers_once(
    shards: Shards, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = shards([3, 4], stats=False)
    assert open_tars(folder).num_pairs == 7
    assert json.loads((folder / "tar_counts.json").read_text())["00001.tar"]["samples"] == 4
    with monkeypatch.context() as patch:
        patch.setattr(tar_counts, "count_samples", lambda url: pytest.fail(f"{url} is counted again"))
        assert (
            open_tars(folder).num_pairs
            == open_tars(folder, counts=str(folder / "tar_counts.json")).num_pairs
            == 7
        )
    shutil.copy(folder / "00000.tar", folder / "00001.tar")
    assert open_tars(folder).num_pairs == 6
    (folder / "tar_counts.json").write_text("{")
    assert open_tars(folder).num_pairs == 6


def test_counting_goes_without_a_place_to_keep_it(shards: Shards, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = shards([3], stats=False)

    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied", str(folder))

    monkeypatch.setattr(
        tar_counts, "write_atomically", refuse
    )  # root may write anywhere, so this cannot be had for real
    assert open_tars(folder).num_pairs == 3


def test_a_file_of_counts_and_an_epoch_of_another_length(shards: Shards, tmp_path: Path) -> None:
    folder = shards([3, 4], stats=False)
    (tmp_path / "counts.json").write_text(json.dumps({"00000.tar": 3, str(folder / "00001.tar"): 4}))
    assert open_tars(folder, counts=str(tmp_path / "counts.json")).num_pairs == 7
    assert not (folder / "tar_counts.json").exists()
    stream = open_tars(folder, num_pairs=5)
    assert (stream.num_pairs, stream.num_images) == (5, 5)


def test_urls_are_brace_ranges_folders_globs_and_lists(
    shards: Shards, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = shards([1] * 12)
    for urls in (
        [f"{folder}/{{00000..00011}}.tar"],
        [folder],
        [f"{folder}/*.tar"],
        [f"{folder}/000{{00..09}}.tar", f"{folder}/000{{10,11}}.tar"],
        [f"file://{folder}/{{00000..00011}}.tar"],
    ):
        assert open_tars(*urls).num_pairs == 12
    monkeypatch.chdir(folder)
    assert open_tars("0000{0,1}.tar").num_pairs == 2


def test_ids_stay_when_a_set_moves_and_differ_between_shards(shards: Shards, tmp_path: Path) -> None:
    def ids(folder: Path) -> list[int]:
        pairs = walk(open_tars(folder / "a", folder / "b", shuffle=1), 4)
        return sorted(pair.pair_id for pair in pairs if isinstance(pair, RawPair))

    for half in "ab":
        shards([2], name=f"here/{half}")
    shutil.copytree(tmp_path / "here", tmp_path / "there" / "deeper")
    assert ids(tmp_path / "here") == ids(tmp_path / "there" / "deeper")
    assert len(set(ids(tmp_path / "here"))) == 4 and min(ids(tmp_path / "here")) >= 0


@pytest.mark.parametrize(
    ("members", "reason"),
    [
        ({"0.txt": b"a"}, "sample 0 of .*a.tar: it has no picture"),
        ({"0.jpg": b"p"}, r"it has no \.txt with a caption"),
        ({"0.jpg": b"p", "0.txt": b" \n"}, "its caption is empty"),
        ({"0.jpg": b"p", "0.txt": b"\xff"}, "codec can't decode"),
    ],
)
def test_bad_samples_are_named_and_count(tmp_path: Path, members: dict[str, bytes], reason: str) -> None:
    write_tar(tmp_path / "a.tar", members | {"1.jpg": png(1), "1.txt": b"good"})
    bad, good = walk(open_tars(tmp_path / "a.tar", shuffle=1), 2)
    assert isinstance(bad, BadPair) and isinstance(good, RawPair)
    with pytest.raises(AssertionError, match=reason):
        raise AssertionError(bad.reason)


def test_half_a_character_is_no_caption(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", {"0.jpg": b"p", "0.json": b'{"text": "a \\ud800"}'})
    (bad,) = walk(open_tars(tmp_path / "a.tar", caption="json.text"), 1)
    assert isinstance(bad, BadPair) and "surrogates not allowed" in bad.reason


def cut(path: Path, at: int) -> None:
    path.write_bytes(path.read_bytes()[:at])


@pytest.mark.parametrize("num_lanes", [1, 2])
def test_a_cut_shard_gives_a_bad_pair_with_a_stand_in_for_each_lost_sample(
    shards: Shards, num_lanes: int
) -> None:
    folder = shards([6, 6, 6])
    stream = open_tars(folder, shuffle=4)
    cut(folder / "00001.tar", 3 * 3 * 1024 + 600)
    for lane in range(num_lanes):
        whole = walk(stream, 36, lane=lane, num_lanes=num_lanes)
        for first in range(36):
            assert walk(stream, 36 - first, lane=lane, num_lanes=num_lanes, first=first) == whole[first:]
        bad = [pair for pair in whole if isinstance(pair, BadPair)]
        assert bad and all("00001.tar is cut" in pair.reason for pair in bad)
        assert all(pair.instead is not None for pair in bad)
    once = walk(stream, 18)
    assert sorted(numbers(once)) == [-1] * 3 + [0, 1, 2, 3, 4, 5, 6, 7, 8, 12, 13, 14, 15, 16, 17]
    stand_ins = [pair.instead.caption for pair in once if isinstance(pair, BadPair) and pair.instead]
    assert len(set(stand_ins)) == 3


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "is empty"),
        (b"no tar at all" * 100, "is not a tar"),
        (gzip.compress(os.urandom(2000)), "is compressed"),
        (None, "cannot be read"),
    ],
)
def test_a_shard_that_is_no_tar_is_named(shards: Shards, content: bytes | None, reason: str) -> None:
    folder = shards([2, 2])
    stream = open_tars(folder, shuffle=1)
    path = folder / "00000.tar"
    path.unlink() if content is None else path.write_bytes(content)
    bad = [pair for pair in walk(stream, 4) if isinstance(pair, BadPair)]
    assert len(bad) == 2 and all(f"{path} {reason}" in pair.reason for pair in bad)


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("at", [5, 100, 512, 600, 1024, 1600, 2048, 2560])
def test_a_cut_shard_is_told_alike_wherever_a_lane_is_entered(shards: Shards, at: int, known: bool) -> None:
    folder = shards([6, 6], stats=known)
    stream = open_tars(folder, shuffle=2, num_pairs=None if known else 12)
    cut(folder / "00001.tar", 3 * 3 * 1024 + at)
    for lane in range(2):
        whole = walk(stream, 24, lane=lane, num_lanes=2)
        for first in range(24):
            assert walk(stream, 24 - first, lane=lane, num_lanes=2, first=first) == whole[first:]


@pytest.mark.parametrize("known", [True, False])
def test_a_member_too_large_to_be_a_picture_is_none_and_ends_no_shard(
    shards: Shards, monkeypatch: pytest.MonkeyPatch, known: bool
) -> None:
    monkeypatch.setattr(tar_samples, "MAX_BODY_BYTES", 5000)
    folder = shards([4, 4], stats=known)
    members = {}
    for number in range(4):
        members |= {
            f"{number}.jpg": png(number) + bytes(6000 * (number == 1)),
            f"{number}.txt": b"n %d" % number,
        }
    write_tar(folder / "00001.tar", members)
    stream = open_tars(folder, shuffle=1, num_pairs=None if known else 8)
    whole = walk(stream, 16)
    bad = [pair for pair in whole if isinstance(pair, BadPair)]
    assert len(bad) == 2 and "sample 1 of" in bad[0].reason and "it has no picture" in bad[0].reason
    for first in range(16):
        assert walk(stream, 16 - first, first=first) == whole[first:]


def test_damage_in_the_middle_is_not_taken_for_the_end(shards: Shards) -> None:
    folder = shards([4], stats=False)
    content = bytearray((folder / "00000.tar").read_bytes())
    content[6 * 1024 + 150] ^= 1  # the checksum of the header of the third sample's first member
    (folder / "00000.tar").write_bytes(content)
    with pytest.raises(
        DataError, match=r"00000\.tar has a damaged header at byte 6144, after 1 whole samples: mend it"
    ):
        open_tars(folder)
    pairs = walk(open_tars(folder, num_pairs=4, shuffle=1), 3)
    assert [isinstance(pair, BadPair) for pair in pairs] == [False, True, False]


def test_counts_that_are_wrong_are_said(shards: Shards, caplog: pytest.LogCaptureFixture) -> None:
    folder = shards([3])
    for said, reason in ((4, None), (2, "has more samples than the 2")):
        (folder / "00000_stats.json").write_text(json.dumps({"successes": said}))
        pairs = walk(open_tars(folder, shuffle=1), 4)
        if reason is None:
            assert isinstance(pairs[3], BadPair) and "has 3 samples, but its counts say 4" in pairs[3].reason
        else:
            assert numbers(pairs) == [0, 1, 0, 1] and reason in caplog.text


@pytest.mark.parametrize("count", [-3, 1 << 70, 2.0, True])
def test_what_is_no_count_is_refused_or_counted_anew(shards: Shards, tmp_path: Path, count: object) -> None:
    folder = shards([3], stats=False)
    (tmp_path / "counts.json").write_text(json.dumps({"00000.tar": count}))
    with pytest.raises(DataError, match=r"counts\.json has .* for 00000\.tar; give a number of samples"):
        open_tars(folder, counts=str(tmp_path / "counts.json"))
    (folder / "00000_stats.json").write_text(json.dumps({"successes": count}))
    assert open_tars(folder).num_pairs == 3
    entries = json.loads((folder / "tar_counts.json").read_text())
    entries["00000.tar"]["samples"] = count
    (folder / "tar_counts.json").write_text(json.dumps(entries))
    assert open_tars(folder).num_pairs == 3


@pytest.mark.parametrize(
    ("urls", "error", "sentence"),
    [
        ((), ConfigError, "urls of data.train is empty"),
        (("pipe:cat a.tar",), ConfigError, "commands are not run"),
        (("/nowhere/{0..3}.tar",), DataError, "there is no file /nowhere/0.tar"),
        (("/nowhere/{3..0}.tar",), ConfigError, "counts down"),
        (("/nowhere/*.tar",), DataError, "there is no .tar at"),
        (("s3://bucket/{0..3}.tar",), ConfigError, "s3fs"),
        (("abacus://bucket/0.tar",), ConfigError, "abacus"),
    ],
)
def test_urls_that_cannot_be_are_refused(urls: tuple[str, ...], error: type, sentence: str) -> None:
    with pytest.raises(error, match=sentence):
        open_tars(*urls)


def test_a_shard_named_twice_and_shards_without_samples_are_refused(shards: Shards) -> None:
    folder = shards([1, 0])
    with pytest.raises(ConfigError, match="twice"):
        open_tars(folder, folder / "00000.tar")
    with pytest.raises(DataError, match="no samples"):
        open_tars(folder / "00001.tar")
    (pair,) = walk(open_tars(folder / "00001.tar", num_pairs=3), 1, first=2)
    assert isinstance(pair, BadPair) and "no samples" in pair.reason
