"""Reading splits of both formats: what comes back, from which process, and what damage says."""

from __future__ import annotations

import base64
import json
import multiprocessing
import os
import pickle
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import lmdb
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cn_clip.data.store import ImageStore, PairRecord, PairStore, SplitWriter, layout, open_split
from cn_clip.data.store.old_pickle import read_flat_pickle
from cn_clip.errors import DataError

PAIRS = [(10, 1, "一只猫"), (9, 1, "一只猫"), (10, 2, 'Dog "狗" \ud83d\n\\')]  # with half a surrogate pair
PICTURES = {10: b"\xff\xd8ten", 9: b"\x89PNGnine", 100: b"hundred" * 3000}


def write_split(path: Path, store_format: layout.Format = "v2") -> Path:
    with SplitWriter(path, store_format) as writer:
        for image_id, picture in PICTURES.items():
            writer.add_image(image_id, picture)
        for pair in PAIRS:
            writer.add_pair(*pair)
    return path


def write_lmdb(folder: Path, values: Mapping[bytes, bytes]) -> Path:
    folder.parent.mkdir(parents=True, exist_ok=True)
    with lmdb.open(str(folder), map_size=1 << 24) as env, env.begin(write=True) as transaction:
        for key, value in values.items():
            transaction.put(key, value)
    return folder


@pytest.mark.parametrize("store_format", ["v2", "reference"])
def test_a_split_comes_back_as_it_was_written(tmp_path: Path, store_format: layout.Format) -> None:
    split = open_split(write_split(tmp_path / "train", store_format))
    assert [split.pairs.read(index) for index in range(len(split.pairs))] == [
        PairRecord(*pair) for pair in PAIRS
    ]
    assert {image_id: split.images.read(image_id) for image_id in split.images.ids()} == PICTURES
    assert len(split.images) == 3


def test_image_ids_come_in_key_order(tmp_path: Path) -> None:
    assert open_split(write_split(tmp_path / "train")).images.ids() == [10, 100, 9]


def test_format_2_is_what_the_layout_says(tmp_path: Path) -> None:
    split = write_split(tmp_path / "train")
    with lmdb.open(str(split / "pairs"), readonly=True, lock=False) as env, env.begin() as transaction:
        assert json.loads(transaction.get(b"1")) == [9, 1, "一只猫"]
        meta = json.loads(transaction.get(b"meta"))
        assert (meta["format"], meta["version"], meta["count"]) == ("cn_clip pairs", 2, 3)
        with pytest.raises(ValueError, match="--format reference"):  # what the old program runs into
            int(transaction.get(b"num_samples").decode())
    with lmdb.open(str(split / "imgs"), readonly=True, lock=False) as env, env.begin() as transaction:
        assert transaction.get(b"9") == PICTURES[9]
        assert transaction.stat()["entries"] == 3 + 2


def test_a_missing_picture_is_named(tmp_path: Path) -> None:
    images = open_split(write_split(tmp_path / "train")).images
    with pytest.raises(DataError, match=r"imgs has no picture with id 77: .*_imgs\.tsv"):
        images.read(77)


def test_a_position_outside_is_an_index_error(tmp_path: Path) -> None:
    pairs = open_split(write_split(tmp_path / "train")).pairs
    for index in (-1, 3):
        with pytest.raises(IndexError, match="3 pairs"):
            pairs.read(index)


def test_stores_of_one_file_share_it(tmp_path: Path) -> None:
    path = write_split(tmp_path / "train")
    first, second = open_split(path), open_split(path)
    assert first.images.read(9) == second.images.read(9) == PICTURES[9]
    del first
    assert second.images.read(10) == PICTURES[10]


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_parent_that_only_counts_holds_no_file(tmp_path: Path) -> None:
    split = open_split(write_split(tmp_path / "train"))
    assert (len(split.pairs), len(split.images)) == (3, 3)
    open_files = {os.path.realpath(f"/proc/self/fd/{name}") for name in os.listdir("/proc/self/fd")}
    assert not [name for name in open_files if str(tmp_path) in name]
    assert str(tmp_path) not in Path("/proc/self/maps").read_text()


def read_in_process(start_method: str, read: Callable[[int], object], argument: int) -> object:
    with multiprocessing.get_context(start_method).Pool(1) as pool:
        return pool.apply(read, (argument,))


@pytest.mark.parametrize("start_method", ["spawn", "fork"])
def test_readers_work_in_other_processes(tmp_path: Path, start_method: str) -> None:
    if start_method not in multiprocessing.get_all_start_methods():
        pytest.skip("no fork on this system")
    split = open_split(write_split(tmp_path / "train"))
    assert split.images.read(9) == PICTURES[9]  # open in the parent while the child reads
    assert read_in_process(start_method, split.images.read, 9) == PICTURES[9]
    assert read_in_process(start_method, split.pairs.read, 0) == PairRecord(*PAIRS[0])
    assert split.images.read(10) == PICTURES[10]


def test_a_store_rebuilt_under_a_reader_is_not_mixed(tmp_path: Path) -> None:
    images = open_split(write_split(tmp_path / "train")).images
    copy = pickle.loads(pickle.dumps(images))
    with SplitWriter(tmp_path / "train") as writer:
        writer.add_image(9, b"another picture")
    with pytest.raises(DataError, match="built anew"):
        copy.read(9)
    assert open_split(tmp_path / "train").images.read(9) == b"another picture"


@pytest.mark.parametrize("size", [0, 1, 100, 4096, 8192, 12_000])
def test_a_cut_file_is_an_error(tmp_path: Path, size: int) -> None:
    path = write_split(tmp_path / "train") / "imgs"
    with (path / "data.mdb").open("r+b") as file:
        file.truncate(size)
    with pytest.raises(DataError, match=r"imgs/data\.mdb is .*cut"):
        ImageStore(path)


def test_what_is_no_lmdb_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "imgs").mkdir()
    with pytest.raises(DataError, match=r"no data\.mdb"):
        ImageStore(tmp_path / "imgs")
    (tmp_path / "imgs" / "data.mdb").write_bytes(b"no database" * 5000)
    with pytest.raises(DataError, match="no LMDB file"):
        ImageStore(tmp_path / "imgs")
    with pytest.raises(DataError, match="does not exist"):
        ImageStore(tmp_path / "nowhere")


def test_the_wrong_folder_gets_a_hint(tmp_path: Path) -> None:
    path = write_split(tmp_path / "lmdb" / "train")
    with pytest.raises(DataError, match=r"one of its splits \(train\)"):
        open_split(tmp_path / "lmdb")
    with pytest.raises(DataError, match=f"give {path}, which holds both"):
        open_split(path / "imgs")
    with pytest.raises(DataError, match="is not a folder"):
        open_split(tmp_path / "lmdb" / "trian")
    with pytest.raises(DataError, match="may be swapped"):
        PairStore(path / "imgs")
    with pytest.raises(DataError, match="may be swapped"):
        ImageStore(write_split(tmp_path / "old", "reference") / "pairs")


def test_a_newer_format_is_refused(tmp_path: Path) -> None:
    meta = json.dumps({"format": "cn_clip pairs", "version": 3, "count": 1}).encode()
    with pytest.raises(DataError, match="format 3.*newer cn_clip"):
        PairStore(write_lmdb(tmp_path / "pairs", {b"meta": meta}))


def test_meta_fields_of_later_releases_are_passed_over(tmp_path: Path) -> None:
    meta = json.dumps({"format": "cn_clip pairs", "version": 2, "count": 0, "shards": 4}).encode()
    assert len(PairStore(write_lmdb(tmp_path / "pairs", {b"meta": meta}))) == 0


@pytest.mark.parametrize(
    "meta",
    [b"", b"[]", b"{", b"[" * 100_000, b'{"format": "cn_clip pairs", "version": 2}', b"\xff"]
    + [
        b'{"format": "cn_clip pairs", "version": 2, "count": %s}' % count
        for count in (b"Infinity", b"NaN", b"1e400", b"-1", b"true", b'"1"', b"0.5", b"9" * 5000)
    ],
)
def test_a_broken_meta_is_an_error(tmp_path: Path, meta: bytes) -> None:
    with pytest.raises(DataError, match="meta"):
        PairStore(write_lmdb(tmp_path / "pairs", {b"meta": meta}))


@pytest.mark.parametrize("count", [3, 10**18, 10**30])
def test_a_count_of_more_than_there_is_is_an_error(tmp_path: Path, count: int) -> None:
    """Or a damaged count would ask for more memory than there is."""
    pair = layout.encode_pair(1, 1, "x", "v2")
    meta = json.dumps({"format": "cn_clip pairs", "version": 2, "count": count}).encode()
    with pytest.raises(DataError, match=f"counts {count}, but has only 2 entries"):
        PairStore(write_lmdb(tmp_path / "pairs", {b"meta": meta, b"0": pair}))
    with pytest.raises(DataError, match=f"counts {count}, but has only 2 entries"):
        PairStore(write_lmdb(tmp_path / "old", {b"num_samples": b"%d" % count, b"0": pair}))


def test_a_reference_count_of_thousands_of_digits_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no readable count"):
        PairStore(write_lmdb(tmp_path / "pairs", {b"num_samples": b"9" * 5000}))


@pytest.mark.parametrize("pair", [(2**63, 1, "x"), (1, -(2**63), "x"), (10**400, 1, "x"), ("9" * 30, 1, "x")])
def test_ids_beyond_64_bits_are_an_error(tmp_path: Path, pair: tuple[int, int, str]) -> None:
    old = PairStore(write_lmdb(tmp_path / "old", {b"num_samples": b"1", b"0": pickle.dumps(pair)}))
    meta = json.dumps({"format": "cn_clip pairs", "version": 2, "count": 1}).encode()
    new = PairStore(write_lmdb(tmp_path / "new", {b"meta": meta, b"0": json.dumps(pair).encode()}))
    for pairs in (old, new) if isinstance(pair[0], int) else (old,):
        with pytest.raises(DataError, match=r"pair 0 of .*not a whole number of 64 bits.*build it again"):
            pairs.read(0)
        with pytest.raises(DataError, match="pair 0 of .*not a whole number of 64 bits"):
            pairs.columns()


def test_reference_pictures_with_ids_beyond_64_bits_are_an_error(tmp_path: Path) -> None:
    folder = write_lmdb(tmp_path / "imgs", {b"%d" % 2**63: b"aGk=", b"num_images": b"1"})
    with pytest.raises(DataError, match="'9223372036854775808' is not a whole number of 64 bits: number"):
        ImageStore(folder).ids()


@pytest.mark.parametrize("value", [b"", b"[1]", b"[1, 2, 3]", b"\xff", b"[" * 100_000, b'["1", 2, "x"]'])
def test_a_broken_pair_is_an_error(tmp_path: Path, value: bytes) -> None:
    meta = json.dumps({"format": "cn_clip pairs", "version": 2, "count": 1}).encode()
    pairs = PairStore(write_lmdb(tmp_path / "pairs", {b"meta": meta, b"0": value}))
    with pytest.raises(DataError, match="pair 0 of .* cannot be read"):
        pairs.read(0)


def test_an_unfinished_reference_build_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="never finished"):
        ImageStore(write_lmdb(tmp_path / "imgs", {b"1": b"aGk="}))


def test_a_reference_count_of_rows_is_not_taken_for_pictures(tmp_path: Path) -> None:
    images = ImageStore(write_lmdb(tmp_path / "imgs", {b"1": b"aGk=", b"2": b"aGk=", b"num_images": b"5"}))
    assert len(images) == len(images.ids()) == 2


def test_reference_pictures_in_both_alphabets(tmp_path: Path) -> None:
    picture = bytes(range(256))
    values = {
        b"1": base64.b64encode(picture),
        b"2": base64.urlsafe_b64encode(picture),
        b"3": b"=",
        b"num_images": b"3",
    }
    images = ImageStore(write_lmdb(tmp_path / "imgs", values))
    assert images.read(1) == images.read(2) == picture
    with pytest.raises(DataError, match="picture 3 of .* is not base64"):
        ImageStore(write_lmdb(tmp_path / "short", {b"3": b"abc", b"num_images": b"1"})).read(3)


def test_reference_ids_that_are_names_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="not a whole number"):
        ImageStore(write_lmdb(tmp_path / "imgs", {b"dog.jpg": b"aGk=", b"num_images": b"1"})).ids()


class Malicious:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_malicious_pickle_runs_nothing(tmp_path: Path, protocol: int) -> None:
    touched = tmp_path / "touched"
    for number, value in enumerate((Malicious(touched), (1, 2, Malicious(touched)))):
        bomb = pickle.dumps(value, protocol)
        folder = write_lmdb(tmp_path / f"pairs{number}", {b"0": bomb, b"num_samples": b"1"})
        with pytest.raises(DataError, match="pair 0 of .*opcode"):
            PairStore(folder).read(0)
    assert not touched.exists()
    pickle.loads(bomb)  # it would have worked
    assert touched.exists()


@given(st.tuples(st.integers(), st.integers(), st.text()), st.integers(0, pickle.HIGHEST_PROTOCOL))
def test_reference_pairs_read_as_unpickling_would(pair: tuple[int, int, str], protocol: int) -> None:
    if abs(pair[0]) < 2**1000 and abs(pair[1]) < 2**1000:
        assert read_flat_pickle(pickle.dumps(pair, protocol)) == pair


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_an_item_that_repeats_is_read(protocol: int) -> None:
    same = "".join(["狗"] * 400)
    pair = (same, 2, same)  # pickle writes the second one as a reference to the first
    assert read_flat_pickle(pickle.dumps(pair, protocol)) == pair


@given(
    st.binary(max_size=60)
    | st.lists(st.sampled_from(list(b"\x80\x04\x95K(Mt.\x87q\x94hX\x8cIVpgj\n0")), max_size=30).map(bytes)
)
def test_any_bytes_are_a_pair_or_a_value_error(value: bytes) -> None:
    try:
        items = read_flat_pickle(value)
    except ValueError:
        return
    assert len(items) == 3
    assert {type(item) for item in items} <= {int, str}
