"""A split that is gone on with: what it then holds, what the old one's readers see, and what ends badly."""

from __future__ import annotations

import errno
import json
import logging
import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import lmdb
import pytest

from cn_clip.data.captions import caption_key
from cn_clip.data.store import PairRecord, Split, SplitWriter, layout, open_split
from cn_clip.errors import DataError

OLD = {10: b"ten" * 2000, 9: b"nine" * 2000}
NEW = {11: b"eleven" * 2000, 7: b"seven" * 2000, 100: b"hundred" * 2000}


def add(
    path: Path,
    pictures: dict[int, bytes],
    store_format: layout.Format = "v2",
    *,
    append: bool = True,
    tokenizer: str | None = "letters",
    shard_bytes: int | None = None,
) -> SplitWriter:
    """Add the pictures with a pair each."""
    with SplitWriter(
        path, store_format, append=append, tokenizer=tokenizer, shard_bytes=shard_bytes
    ) as writer:
        for image_id, picture in pictures.items():
            writer.add_image(image_id, picture, f"row of {image_id}", size=(image_id, 1))
            writer.add_pair(image_id, image_id, f"图{image_id}", tokens_of(image_id))
    return writer


def tokens_of(image_id: int) -> list[int]:
    return [ord(letter) for letter in f"图{image_id}"]


def write_before_there_was_an_index(path: Path) -> None:
    """OLD as cn_clip wrote it at first: pairs and imgs in format 2, and nothing else."""
    pairs = {b"%d" % n: json.dumps([i, i, f"图{i}"]).encode() for n, i in enumerate(OLD)}
    images = {b"%d" % image_id: picture for image_id, picture in OLD.items()}
    for name, kind, values in (("pairs", layout.PAIRS_FORMAT, pairs), ("imgs", layout.IMAGES_FORMAT, images)):
        values |= {
            b"meta": layout.encode_meta(kind, len(OLD)),
            layout.COUNT_KEYS[kind]: layout.STOP_SENTENCE,
        }
        (path / name).mkdir(parents=True)
        with lmdb.open(str(path / name), lock=False) as env, env.begin(write=True) as transaction:
            for key, value in values.items():
                transaction.put(key, value)


def expect(split: Split, pictures: dict[int, bytes]) -> None:
    """The split holds these pictures, and a pair of each in their order."""
    assert {image_id: split.images.read(image_id) for image_id in split.images.ids()} == pictures
    assert len(split.images) == len(pictures)
    pairs = [split.pairs.read(index) for index in range(len(split.pairs))]
    assert pairs == [PairRecord(image_id, image_id, f"图{image_id}") for image_id in pictures]
    columns = split.pairs.columns()
    assert columns.image_ids.tolist() == columns.text_ids.tolist() == list(pictures)
    assert columns.caption_keys.tolist() == [caption_key(f"图{image_id}") for image_id in pictures]


def expect_tokens(split: Split, pictures: dict[int, bytes]) -> None:
    assert split.tokens is not None and split.tokens.tokenizer == "letters"
    read = [split.tokens.read(index).tolist() for index in range(len(split.tokens))]
    assert read == [tokens_of(image_id) for image_id in pictures]


def names(folder: Path) -> list[str]:
    return sorted(child.name for child in folder.iterdir())


@pytest.mark.parametrize("columns_rows", [1, 2, 3, 65_536])
def test_a_split_grows(tmp_path: Path, columns_rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layout, "COLUMNS_ROWS", columns_rows)
    add(tmp_path / "train", OLD, append=False)
    writer = add(tmp_path / "train", NEW)
    assert (writer.num_old_images, writer.num_old_pairs) == (2, 2)
    assert (writer.num_images, writer.num_pairs, writer.num_repeats) == (5, 5, 0)
    split = open_split(tmp_path / "train")
    expect(split, OLD | NEW)
    expect_tokens(split, OLD | NEW)
    assert split.images.num_shards == 2
    assert all(split.images.facts(image_id).width_px == image_id for image_id in OLD | NEW)  # type: ignore[union-attr]
    assert names(tmp_path) == ["train"]


def test_a_split_grows_many_times(tmp_path: Path) -> None:
    for number, (image_id, picture) in enumerate((OLD | NEW).items()):
        add(tmp_path / "train", {image_id: picture}, append=number > 0)
    split = open_split(tmp_path / "train")
    expect(split, OLD | NEW)
    expect_tokens(split, OLD | NEW)
    assert split.images.num_shards == 5


def test_shards_go_on_after_shards(tmp_path: Path) -> None:
    add(tmp_path / "train", OLD, append=False, shard_bytes=1)
    add(tmp_path / "train", NEW, shard_bytes=1)
    split = open_split(tmp_path / "train")
    expect(split, OLD | NEW)
    assert [shard.count for shard in split.images.shards] == [1] * 5


def test_columns_of_another_block_size_are_made_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layout, "COLUMNS_ROWS", 4)
    add(tmp_path / "train", OLD, append=False)
    monkeypatch.undo()
    add(tmp_path / "train", NEW)
    expect(open_split(tmp_path / "train"), OLD | NEW)
    expect_tokens(open_split(tmp_path / "train"), OLD | NEW)


@pytest.mark.parametrize("there", ["nothing", "a folder", "a file"])
def test_there_must_be_something_to_go_on_after(tmp_path: Path, there: str) -> None:
    if there == "a folder":
        (tmp_path / "train").mkdir()
    elif there == "a file":
        (tmp_path / "train").touch()
    before = names(tmp_path)
    with pytest.raises(DataError, match=f"there is no split {tmp_path}/train to add to: leave out --append"):
        add(tmp_path / "train", OLD)
    assert names(tmp_path) == before


def test_old_pictures_are_linked_and_not_copied(tmp_path: Path) -> None:
    add(tmp_path / "train", OLD, append=False)
    images = tmp_path / "train" / "imgs" / "data.mdb"
    before = images.stat()
    add(tmp_path / "train", NEW)
    after = images.stat()
    assert (after.st_ino, after.st_mtime_ns, after.st_size) == (
        before.st_ino,
        before.st_mtime_ns,
        before.st_size,
    )


def test_old_pictures_are_copied_where_files_cannot_be_linked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(source: object, target: object) -> None:
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", refuse)
    add(tmp_path / "train", OLD, append=False)
    add(tmp_path / "train", NEW)
    expect(open_split(tmp_path / "train"), OLD | NEW)


def test_pictures_behind_a_link_to_another_folder_are_kept(tmp_path: Path) -> None:
    add(tmp_path / "train", OLD, append=False)
    (tmp_path / "train" / "imgs").rename(tmp_path / "disk")
    (tmp_path / "train" / "imgs").symlink_to(tmp_path / "disk")
    add(tmp_path / "train", NEW)
    expect(open_split(tmp_path / "train"), OLD | NEW)
    assert (tmp_path / "disk" / "data.mdb").exists()


def test_more_captions_of_old_pictures_need_no_new_folder(tmp_path: Path) -> None:
    add(tmp_path / "train", OLD, append=False)
    with SplitWriter(tmp_path / "train", append=True, tokenizer="letters") as writer:
        assert writer.has_image(9) and not writer.has_image(11)
        writer.add_pair(9, 3, "又一句", [1])
    split = open_split(tmp_path / "train")
    assert (len(split.pairs), split.images.num_shards) == (3, 1)


def test_an_old_picture_that_comes_again_is_kept_once(tmp_path: Path) -> None:
    add(tmp_path / "train", OLD, append=False)
    with SplitWriter(tmp_path / "train", append=True, tokenizer="letters") as writer:
        writer.add_image(9, OLD[9])
    assert (writer.num_repeats, writer.num_images) == (1, 2)
    assert open_split(tmp_path / "train").images.num_shards == 1


def test_another_picture_with_an_old_id_is_refused(tmp_path: Path) -> None:
    add(tmp_path / "train", OLD, append=False)
    with pytest.raises(DataError, match="row of 9: id 9 was given before with other content"):
        add(tmp_path / "train", NEW | {9: b"another"})
    expect(open_split(tmp_path / "train"), OLD)
    assert names(tmp_path) == ["train"]


def test_the_old_split_is_read_meanwhile_and_afterwards(tmp_path: Path) -> None:
    add(tmp_path / "train", OLD, append=False)
    old = open_split(tmp_path / "train")
    expect(old, OLD)
    unopened = pickle.loads(pickle.dumps(old))
    with SplitWriter(tmp_path / "train", append=True, tokenizer="letters") as writer:
        writer.add_image(11, NEW[11])
        writer.add_pair(11, 11, "图11", tokens_of(11))
        expect(open_split(tmp_path / "train"), OLD)
        expect(old, OLD)
    expect(old, OLD)
    expect(open_split(tmp_path / "train"), OLD | {11: NEW[11]})
    with pytest.raises(DataError, match="built anew while it was being read"):  # two splits are never mixed
        unopened.pairs.read(0)


def test_a_split_without_index_gets_one(tmp_path: Path) -> None:
    write_before_there_was_an_index(tmp_path / "train")
    inode = (tmp_path / "train" / "imgs" / "data.mdb").stat().st_ino
    add(tmp_path / "train", NEW, tokenizer=None)
    split = open_split(tmp_path / "train")
    expect(split, OLD | NEW)
    assert split.images.has_index
    assert (tmp_path / "train" / "imgs" / "data.mdb").stat().st_ino == inode
    with pytest.raises(DataError, match="id 9 was given before"):
        add(tmp_path / "train", {9: b"another"}, tokenizer=None)


@pytest.mark.parametrize(("there", "given"), [("v2", "reference"), ("reference", "v2")])
def test_a_split_of_another_format_is_refused(
    tmp_path: Path, there: layout.Format, given: layout.Format
) -> None:
    """Or tokens and index would be gone without a word."""
    add(tmp_path / "train", OLD, there, append=False)
    with pytest.raises(DataError, match=f"train has format {there}, not {given}: give --format {there}"):
        add(tmp_path / "train", NEW, given)
    expect(open_split(tmp_path / "train"), OLD)
    assert names(tmp_path) == ["train"]


def test_a_split_of_the_reference_format_grows(tmp_path: Path) -> None:
    add(tmp_path / "train", OLD, "reference", append=False)
    add(tmp_path / "train", NEW, "reference")
    split = open_split(tmp_path / "train")
    expect(split, OLD | NEW)
    assert split.images.version == split.pairs.version == 1
    assert names(tmp_path / "train") == ["imgs", "pairs"]


def test_ids_of_a_reference_split_beyond_64_bits_are_an_error(tmp_path: Path) -> None:
    with SplitWriter(tmp_path / "train", "reference") as writer:
        writer.add_pair(2**63, 1, "x")
    with pytest.raises(DataError, match="pair 0 of .* cannot be read .*not a whole number of 64 bits"):
        add(tmp_path / "train", NEW, "reference")
    assert len(open_split(tmp_path / "train").pairs) == 1


@pytest.mark.parametrize(
    ("old", "new", "why"),
    [
        (None, "letters", "has no tokens"),
        ("letters", "words", "has tokens of another tokenizer"),
        ("letters", None, "has tokens, the new captions have none"),
    ],
)
def test_tokens_are_those_of_all_captions_or_none(
    tmp_path: Path, old: str | None, new: str | None, why: str, caplog: pytest.LogCaptureFixture
) -> None:
    add(tmp_path / "train", OLD, append=False, tokenizer=old)
    with caplog.at_level(logging.WARNING):
        writer = add(tmp_path / "train", NEW, tokenizer=new)
    assert writer.tokenizer is None
    assert [why in record.message for record in caplog.records] == [True]
    split = open_split(tmp_path / "train")
    expect(split, OLD | NEW)
    assert split.tokens is None


def test_a_split_without_captions_can_get_tokens(tmp_path: Path) -> None:
    with SplitWriter(tmp_path / "train"):
        pass
    add(tmp_path / "train", NEW)
    expect_tokens(open_split(tmp_path / "train"), NEW)


@pytest.mark.parametrize("folder", ["imgs", "index", "pairs", "tokens"])
def test_a_damaged_split_is_not_gone_on_with(tmp_path: Path, folder: str) -> None:
    add(tmp_path / "train", OLD, append=False)
    os.truncate(tmp_path / "train" / folder / "data.mdb", 8192)
    with pytest.raises(DataError, match=f"{folder}/data.mdb is cut"):
        add(tmp_path / "train", NEW)
    assert names(tmp_path) == ["train"]


@pytest.mark.skipif(sys.platform == "win32", reason="kills by signal")
@pytest.mark.parametrize("moment", ["begun", "half", "finished", "exchanged"])
def test_a_kill_leaves_a_whole_split(tmp_path: Path, moment: str) -> None:
    add(tmp_path / "train", OLD, append=False)
    code = f"""
import os, signal, sys
from collections.abc import Iterator
from pathlib import Path
from cn_clip.data.store import SplitWriter, replacement, writer as module
def die(*_): os.kill(os.getpid(), signal.SIGKILL)
path, moment = Path({str(tmp_path / "train")!r}), {moment!r}
if moment == "finished": replacement.Replacement.commit = die
if moment == "exchanged": replacement.Replacement.discard = die
with SplitWriter(path, append=True, tokenizer="letters") as writer:
    if moment == "begun": die()
    for image_id, picture in {NEW!r}.items():
        writer.add_image(image_id, picture)
        writer.add_pair(image_id, image_id, f"图{{image_id}}", [ord(letter) for letter in f"图{{image_id}}"])
    if moment == "half": die()
"""
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    there = OLD | NEW if moment == "exchanged" else OLD
    expect(open_split(tmp_path / "train"), there)
    if moment != "exchanged":
        add(tmp_path / "train", NEW)
    else:
        add(tmp_path / "train", {})
    expect(open_split(tmp_path / "train"), OLD | NEW)
    expect_tokens(open_split(tmp_path / "train"), OLD | NEW)
    assert names(tmp_path) == ["train"]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Of 2 MB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    words = ["mount", "-t", "tmpfs", "-o", "size=2m", "none", str(disk)]
    if subprocess.run(words, capture_output=True, check=False).returncode != 0:
        pytest.skip("may not mount here")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.skipif(sys.platform == "win32", reason="mounts a disk")
@pytest.mark.parametrize(("num_captions", "folder"), [(1, "imgs-00001"), (14_000, "pairs")])
def test_a_full_disk_leaves_the_old_split(small_disk: Path, num_captions: int, folder: str) -> None:
    """It fills with new pictures, or before, with the copy of the old pairs."""
    with SplitWriter(small_disk / "train") as writer:
        writer.add_image(1, b"picture" * 1000)
        for number in range(num_captions):
            writer.add_pair(1, number, "一只猫")
    with pytest.raises(
        DataError, match=rf"cannot write .*{folder} \(the disk is full\).* what was there before is untouched"
    ):
        add(
            small_disk / "train",
            {number: bytes([number]) * 100_000 for number in range(2, 40)},
            tokenizer=None,
        )
    split = open_split(small_disk / "train")
    assert (len(split.pairs), split.images.read(1)) == (num_captions, b"picture" * 1000)
    assert names(small_disk) == ["train"]
