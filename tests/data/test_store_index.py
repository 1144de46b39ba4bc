"""What a split holds beside its pairs and pictures: the index, further imgs folders, columns of ids, tokens."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path

import lmdb
import numpy as np
import pytest
from xxhash import xxh3_128_digest

from cn_clip.data.captions import caption_key
from cn_clip.data.store import ImageStore, PairStore, PictureFacts, Split, SplitWriter, layout, open_split
from cn_clip.errors import DataError

PICTURES = {number: random.Random(number).randbytes(5000 + 100 * number) for number in (10, 9, 100, 7, 11)}
CAPTIONS = ["一只猫", "狗", "", "Ｔ恤 “Cat”"]
FOLDERS = ["imgs", "imgs-00001", "imgs-00002", "index", "pairs", "tokens"]


def write_split(path: Path, shard_bytes: int | None = None, first_text_id: int = 0) -> Path:
    """Five pictures, a pair for each."""
    with SplitWriter(path, shard_bytes=shard_bytes, tokenizer="letters") as writer:
        for number, (image_id, picture) in enumerate(PICTURES.items()):
            caption = CAPTIONS[number % len(CAPTIONS)]
            writer.add_image(image_id, picture, size=(number + 1, 2))
            writer.add_pair(image_id, first_text_id + number, caption, [ord(letter) for letter in caption])
    return path


def write_sharded(path: Path, first_text_id: int = 0) -> Path:
    return write_split(path, 17_000, first_text_id)  # (10, 9), (100,), (7, 11)


def write_before_there_was_an_index(path: Path) -> Path:
    """As cn_clip did at first: pairs and imgs in format 2, and nothing else."""
    pairs = {
        b"0": json.dumps([9, 1, "一只猫"]).encode(),
        b"1": b'[10,2,"\\ud83d"]',
        b"num_samples": layout.STOP_SENTENCE,
        b"meta": b'{"format": "cn_clip pairs", "version": 2, "count": 2}',
    }
    images = {
        b"9": PICTURES[9],
        b"10": PICTURES[10],
        b"num_images": layout.STOP_SENTENCE,
        b"meta": b'{"format": "cn_clip images", "version": 2, "count": 2}',
    }
    put(path / "pairs", pairs)
    put(path / "imgs", images)
    return path


def put(folder: Path, values: Mapping[bytes, bytes]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with lmdb.open(str(folder), map_size=1 << 24, lock=False) as env, env.begin(write=True) as transaction:
        for key, value in values.items():
            transaction.put(key, value)


def all_pictures(split: Split) -> dict[int, bytes]:
    return {image_id: split.images.read(image_id) for image_id in split.images.ids()}


def overwrite(file: Path, content: bytes, offset: int, damage: bytes) -> None:
    """Put `damage` into the one place of the file where `content` stands."""
    data = file.read_bytes()
    assert data.count(content[:64]) == 1
    place = data.index(content[:64]) + offset
    file.write_bytes(data[:place] + damage + data[place + len(damage) :])


def test_the_index_knows_every_picture(tmp_path: Path) -> None:
    images = open_split(write_sharded(tmp_path / "train")).images
    assert images.has_index
    assert images.facts(9) == PictureFacts(2, 2, len(PICTURES[9]), 0, xxh3_128_digest(PICTURES[9]))
    assert images.facts(12) is None
    assert [images.facts(image_id).shard for image_id in PICTURES] == [0, 0, 1, 2, 2]  # type: ignore[union-attr]


def test_a_picture_that_was_not_measured_has_no_size(tmp_path: Path) -> None:
    with SplitWriter(tmp_path / "train") as writer:
        writer.add_image(1, b"picture")
    facts = open_split(tmp_path / "train").images.facts(1)
    assert facts is not None and (facts.width_px, facts.height_px) == (0, 0)


@pytest.mark.parametrize("store_format", ["v2", "reference"])
def test_the_writer_knows_which_pictures_it_has(tmp_path: Path, store_format: layout.Format) -> None:
    with SplitWriter(tmp_path / "train", store_format) as writer:
        writer.add_image(2**40, b"picture")
        assert writer.has_image(2**40) and not writer.has_image(2)
    assert (tmp_path / "train" / "index").exists() == (store_format == "v2")


def test_shards_are_one_store(tmp_path: Path) -> None:
    sharded, whole = write_sharded(tmp_path / "sharded"), write_split(tmp_path / "whole")
    assert sorted(os.listdir(sharded)) == FOLDERS
    split = open_split(sharded)
    assert split.images.num_shards == 3
    assert len(split.images) == 5
    assert split.images.ids() == open_split(whole).images.ids() == [10, 100, 11, 7, 9]
    assert all_pictures(split) == PICTURES
    with pytest.raises(DataError, match=r"imgs has no picture with id 77"):
        split.images.read(77)


def test_a_picture_larger_than_a_shard_has_one_of_its_own(tmp_path: Path) -> None:
    with SplitWriter(tmp_path / "train", shard_bytes=10_000) as writer:
        for image_id in range(3):
            writer.add_image(image_id, bytes([image_id]) * 50_000)
    assert [shard.count for shard in open_split(tmp_path / "train").images.shards] == [1, 1, 1]


@pytest.mark.parametrize("start_method", ["spawn", "fork"])
def test_every_part_is_read_in_other_processes(tmp_path: Path, start_method: str) -> None:
    if start_method not in multiprocessing.get_all_start_methods():
        pytest.skip("no fork on this system")
    split = open_split(write_sharded(tmp_path / "train"))
    assert split.tokens is not None
    assert split.images.read(11) == PICTURES[11]  # open in the parent while the child reads
    with multiprocessing.get_context(start_method).Pool(1) as pool:
        assert pool.apply(split.images.read, (11,)) == PICTURES[11]
        assert pool.apply(split.images.read, (10,)) == PICTURES[10]
        assert pool.apply(split.tokens.read, (1,)).tolist() == [ord("狗")]
        assert pool.apply(split.pairs.columns).image_ids.tolist() == list(PICTURES)
    assert split.images.read(7) == PICTURES[7]


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_opening_holds_no_file(tmp_path: Path) -> None:
    split = open_split(write_sharded(tmp_path / "train"))
    assert len(split.images) == 5
    open_files = {os.path.realpath(f"/proc/self/fd/{name}") for name in os.listdir("/proc/self/fd")}
    assert not [name for name in open_files if str(tmp_path) in name]
    assert str(tmp_path) not in Path("/proc/self/maps").read_text()


@pytest.mark.parametrize("offset", [0, 4000, 5500])
@pytest.mark.parametrize("damage", [b"\0", bytes(300)])
def test_a_damaged_picture_is_noticed(tmp_path: Path, offset: int, damage: bytes) -> None:
    path = write_sharded(tmp_path / "train")
    assert PICTURES[7][offset] != 0
    overwrite(path / "imgs-00002" / "data.mdb", PICTURES[7], offset, damage)
    images = open_split(path).images
    with pytest.raises(DataError, match=r"picture 7 of .*train/imgs-00002 is damaged: build it again"):
        images.read(7)
    assert images.read(11) == PICTURES[11]


@pytest.mark.parametrize("other", [b"", b"short", PICTURES[9][::-1], PICTURES[9] + b"\0"])
def test_a_picture_that_is_another_one_is_noticed(tmp_path: Path, other: bytes) -> None:
    path = write_split(tmp_path / "train")
    put(path / "imgs", {b"9": other})
    with pytest.raises(DataError, match=r"picture 9 of .* is damaged"):
        open_split(path).images.read(9)


def test_a_damaged_entry_of_the_index_is_noticed(tmp_path: Path) -> None:
    path = write_split(tmp_path / "train")
    facts = PictureFacts(1, 1, len(PICTURES[9]), 5, xxh3_128_digest(PICTURES[9]))
    put(path / "index", {b"9": layout.encode_facts(facts), b"10": b"half"})
    for image_id in (9, 10):
        with pytest.raises(DataError, match=f"picture {image_id} of .*index cannot be read"):
            open_split(path).images.read(image_id)


def test_ids_that_got_lost_are_noticed(tmp_path: Path) -> None:
    path = write_split(tmp_path / "train")
    with lmdb.open(str(path / "index"), lock=False) as env, env.begin(write=True) as transaction:
        transaction.delete(b"9")
    with pytest.raises(DataError, match=r"index is damaged \(4 of its 5 ids are left\)"):
        open_split(path).images.ids()


@pytest.mark.parametrize("folder", FOLDERS)
@pytest.mark.parametrize("size", [0, 100, 4096, 8192, 12_000])
def test_a_cut_folder_is_an_error(tmp_path: Path, folder: str, size: int) -> None:
    path = write_sharded(tmp_path / "train")
    os.truncate(path / folder / "data.mdb", size)
    with pytest.raises(DataError, match=rf"{folder}/data\.mdb is .*cut"):
        open_split(path)


@pytest.mark.parametrize("folder", ["imgs-00001", "imgs-00002"])
def test_a_missing_shard_is_named(tmp_path: Path, folder: str) -> None:
    path = write_sharded(tmp_path / "train")
    shutil.rmtree(path / folder)
    with pytest.raises(
        DataError, match=f"{folder} does not exist, though index/ lists 3 folders of pictures"
    ):
        open_split(path)


def test_a_folder_that_is_only_begun_is_an_error(tmp_path: Path) -> None:
    path = write_sharded(tmp_path / "train")
    for folder in ("imgs-00001", "index", "tokens"):
        (path / folder / "data.mdb").rename(tmp_path / "data.mdb")
        with pytest.raises(DataError, match=rf"{folder} is not an LMDB folder \(it has no data\.mdb\)"):
            open_split(path)
        (tmp_path / "data.mdb").rename(path / folder / "data.mdb")
    assert len(open_split(path).images) == 5


def test_shards_without_their_index_are_an_error(tmp_path: Path) -> None:
    path = write_sharded(tmp_path / "train")
    shutil.rmtree(path / "index")
    with pytest.raises(DataError, match="holds imgs-00001/, which no index/ lists"):
        open_split(path)


def test_one_shard_is_not_taken_for_the_split(tmp_path: Path) -> None:
    path = write_sharded(tmp_path / "train")
    with pytest.raises(
        DataError, match="imgs-00001 has only some of the split's pictures: give .*train/imgs,"
    ):
        ImageStore(path / "imgs-00001")


def test_the_index_is_found_from_inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(write_sharded(tmp_path / "train") / "imgs")
    images = ImageStore(".")
    monkeypatch.chdir(tmp_path)
    assert images.num_shards == 3
    assert images.read(11) == PICTURES[11]


def test_one_folder_without_its_index_can_be_read(tmp_path: Path) -> None:
    path = write_split(tmp_path / "train")
    shutil.rmtree(path / "index")
    assert all_pictures(open_split(path)) == PICTURES


def test_swapped_shards_are_an_error(tmp_path: Path) -> None:
    path = write_sharded(tmp_path / "train")
    (path / "imgs").rename(path / "moved")
    (path / "imgs-00001").rename(path / "imgs")
    (path / "moved").rename(path / "imgs-00001")
    with pytest.raises(DataError, match=r"imgs is not the folder that .*index lists .* swapped"):
        open_split(path)


@pytest.mark.parametrize("folder", ["imgs-00003", "imgs-123456"])
def test_a_shard_too_many_is_an_error(tmp_path: Path, folder: str) -> None:
    path = write_sharded(tmp_path / "train")
    shutil.copytree(path / "imgs-00001", path / folder)
    with pytest.raises(DataError, match=f"holds {folder}/, which no index/ lists"):
        open_split(path)


@pytest.mark.parametrize(("one", "other"), [("index", "tokens"), ("pairs", "index"), ("imgs", "tokens")])
def test_swapped_folders_are_an_error(tmp_path: Path, one: str, other: str) -> None:
    path = write_split(tmp_path / "train")
    (path / one).rename(path / "moved")
    (path / other).rename(path / one)
    (path / "moved").rename(path / other)
    with pytest.raises(DataError, match="may be swapped"):
        open_split(path)


def test_an_index_of_another_build_is_an_error(tmp_path: Path) -> None:
    path = write_split(tmp_path / "train")
    with SplitWriter(tmp_path / "other") as writer:
        for image_id in PICTURES:
            writer.add_image(image_id, b"another picture")
    shutil.rmtree(path / "index")
    shutil.copytree(tmp_path / "other" / "index", path / "index")
    with pytest.raises(DataError, match="of two builds"):
        open_split(path)


def test_tokens_of_other_captions_are_an_error(tmp_path: Path) -> None:
    path, other = write_split(tmp_path / "train"), write_split(tmp_path / "other", first_text_id=100)
    shutil.rmtree(path / "tokens")
    shutil.copytree(other / "tokens", path / "tokens")
    with pytest.raises(DataError, match=r"tokens was not made from the captions in .*pairs"):
        open_split(path)


def test_tokens_come_back_whole(tmp_path: Path) -> None:
    ids = [[], [0, 65_535], list(range(1000))]
    with SplitWriter(tmp_path / "train", tokenizer="bert 45bbac6b") as writer:
        for number, token_ids in enumerate(ids):
            writer.add_pair(1, number, "x", token_ids)
        with pytest.raises(OverflowError):
            writer.add_pair(1, 3, "x", [65_536])
    tokens = open_split(tmp_path / "train").tokens
    assert tokens is not None and tokens.tokenizer == "bert 45bbac6b"
    assert [tokens.read(index).tolist() for index in range(3)] == ids
    assert tokens.read(1).dtype == np.uint16
    with pytest.raises(IndexError, match="3 pairs, not of pair 3"):
        tokens.read(3)


def test_a_split_without_a_tokenizer_has_no_tokens(tmp_path: Path) -> None:
    with SplitWriter(tmp_path / "train") as writer:
        writer.add_pair(1, 1, "x", [1, 2])
    assert open_split(tmp_path / "train").tokens is None


@pytest.mark.parametrize("value", [b"", b"\1\0", b"\1\0\2\0\3\0\4\0", b"odd"])
def test_damaged_tokens_are_an_error(tmp_path: Path, value: bytes) -> None:
    path = write_split(tmp_path / "train")
    put(path / "tokens", {b"2": value})
    tokens = open_split(path).tokens
    assert tokens is not None
    with pytest.raises(DataError, match=r"tokens of pair 2 in .* cannot be read .*: build it again"):
        tokens.read(2)


@pytest.mark.parametrize("num_pairs", [0, 1, 3, 4, 5, 8, 10])
def test_columns_are_the_ids_of_the_pairs(
    tmp_path: Path, num_pairs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(layout, "COLUMNS_ROWS", 4)
    captions = [f"第{number} “A”" for number in range(num_pairs)]
    with SplitWriter(tmp_path / "train") as writer:
        for number, caption in enumerate(captions):
            writer.add_pair(2**62 + number, -number, caption)
    monkeypatch.undo()  # a reader takes what the store says
    columns = open_split(tmp_path / "train").pairs.columns()
    assert columns.image_ids.tolist() == [2**62 + number for number in range(num_pairs)]
    assert columns.text_ids.tolist() == [-number for number in range(num_pairs)]
    assert columns.caption_keys.tolist() == [caption_key(caption) for caption in captions]
    assert columns.image_ids.dtype == np.int64


@pytest.mark.parametrize("value", [b"", b"1234567", layout.encode_columns(*[layout.array("q", [1])] * 3)])
def test_damaged_columns_are_an_error(tmp_path: Path, value: bytes) -> None:
    path = write_split(tmp_path / "train")
    put(path / "pairs", {b"columns:0": value})
    with pytest.raises(DataError, match="pairs is damaged .*columns"):
        open_split(path).pairs.columns()


def test_a_flipped_byte_of_the_columns_is_noticed(tmp_path: Path) -> None:
    path = write_split(tmp_path / "train")
    ids = np.array(list(PICTURES), "<i8").tobytes()
    overwrite(path / "pairs" / "data.mdb", ids, 8, b"\x0b")
    with pytest.raises(DataError, match="pairs is damaged .*columns"):
        PairStore(path / "pairs").columns()


def test_a_store_from_before_there_was_an_index_is_read(tmp_path: Path) -> None:
    split = open_split(write_before_there_was_an_index(tmp_path / "train"))
    assert all_pictures(split) == {9: PICTURES[9], 10: PICTURES[10]}
    assert split.images.facts(9) is None
    assert split.tokens is None
    columns = split.pairs.columns()
    assert columns.image_ids.tolist() == [9, 10]
    assert columns.text_ids.tolist() == [1, 2]
    assert columns.caption_keys.tolist() == [caption_key("一只猫"), caption_key("\ud83d")]


@pytest.mark.parametrize(
    "fields",
    ["", '"shards": 3', '"shards": []', '"shards": [{"count": 1, "content": null}]', '"shards": [4]']
    + ['"shards": [{"count": Infinity, "content": null}]', '"shards": [{"count": 5.0, "content": null}]']
    + ['"shards": [{"count": -1, "content": null}, {"count": 6, "content": null}]'],
)
def test_a_broken_meta_of_the_index_is_an_error(tmp_path: Path, fields: str) -> None:
    path = write_split(tmp_path / "train")
    meta = '{"format": "cn_clip index", "version": 2, "count": 5' + (f", {fields}" if fields else "") + "}"
    put(path / "index", {b"meta": meta.encode()})
    with pytest.raises(DataError, match="index has a `meta` that cannot be read"):
        open_split(path)
