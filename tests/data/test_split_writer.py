"""Writing a split whole or not at all."""

from __future__ import annotations

import errno
import random
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from cn_clip.data.store import SplitWriter, TakenIdError, growing_table, open_split, replacement
from cn_clip.data.store.layout import Format
from cn_clip.errors import ConfigError, DataError


def write_one(path: Path, picture: bytes) -> None:
    with SplitWriter(path) as writer:
        writer.add_image(1, picture)
        writer.add_pair(1, 1, "x")


def names(folder: Path) -> list[str]:
    return sorted(child.name for child in folder.iterdir())


def test_a_new_split_replaces_the_old_one_entirely(tmp_path: Path) -> None:
    with SplitWriter(tmp_path / "train") as writer:
        for image_id in range(5):
            writer.add_image(image_id, b"old")
            writer.add_pair(image_id, 1, "old")
    write_one(tmp_path / "train", b"new")
    split = open_split(tmp_path / "train")
    assert split.images.ids() == [1]
    assert split.images.read(1) == b"new"
    assert len(split.pairs) == 1
    assert names(tmp_path) == ["train"]


def test_nothing_is_left_of_further_folders(tmp_path: Path) -> None:
    with SplitWriter(tmp_path / "train", shard_bytes=1, tokenizer="letters") as writer:
        for image_id in range(3):
            writer.add_image(image_id, b"old")
    assert names(tmp_path / "train") == ["imgs", "imgs-00001", "imgs-00002", "index", "pairs", "tokens"]
    write_one(tmp_path / "train", b"new")
    assert names(tmp_path / "train") == ["imgs", "index", "pairs"]
    (tmp_path / "train" / "imgs-backup").mkdir()
    with pytest.raises(DataError, match="'imgs-backup', which is no part of a split"):
        write_one(tmp_path / "train", b"newer")


def test_an_error_leaves_the_old_split_and_nothing_else(tmp_path: Path) -> None:
    write_one(tmp_path / "train", b"old")
    with pytest.raises(RuntimeError, match="stop"), SplitWriter(tmp_path / "train") as writer:
        writer.add_image(1, b"new")
        raise RuntimeError("stop")
    assert open_split(tmp_path / "train").images.read(1) == b"old"
    assert names(tmp_path) == ["train"]


@pytest.mark.parametrize("exchange", [True, False])
def test_a_reader_of_the_old_split_goes_on(
    tmp_path: Path, exchange: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not exchange:  # a system or file system without the one-step swap
        monkeypatch.setattr(replacement, "_exchange", lambda first, second: False)
    write_one(tmp_path / "train", b"old")
    images = open_split(tmp_path / "train").images
    assert images.read(1) == b"old"
    write_one(tmp_path / "train", b"new")
    assert images.read(1) == b"old"
    assert open_split(tmp_path / "train").images.read(1) == b"new"
    assert names(tmp_path) == ["train"]


def test_a_kill_between_the_two_renames_is_mended(tmp_path: Path) -> None:
    write_one(tmp_path / "train", b"old")
    (tmp_path / "train").rename(tmp_path / ".train.old")
    (tmp_path / ".train.building").mkdir()
    with pytest.raises(RuntimeError), SplitWriter(tmp_path / "train"):
        assert open_split(tmp_path / "train").images.read(1) == b"old"
        raise RuntimeError
    assert names(tmp_path) == ["train"]


def test_a_swap_that_fails_half_way_keeps_the_old_split(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_one(tmp_path / "train", b"old")
    rename = Path.rename

    def refuse_new(path: Path, target: Path) -> Path:
        if path.name == ".train.building":
            raise PermissionError(errno.EACCES, "Permission denied")
        return rename(path, target)

    monkeypatch.setattr(replacement, "_exchange", lambda first, second: False)
    monkeypatch.setattr(Path, "rename", refuse_new)
    with pytest.raises(DataError, match="cannot put the new split at .*Permission denied"):
        write_one(tmp_path / "train", b"new")
    assert open_split(tmp_path / "train").images.read(1) == b"old"
    assert names(tmp_path) == ["train"]


@pytest.mark.parametrize("store_format", ["v2", "reference"])
def test_the_same_picture_again_is_kept_once(tmp_path: Path, store_format: Format) -> None:
    with SplitWriter(tmp_path / "train", store_format) as writer:
        for image_id in (1, 1, 2, 1):
            writer.add_image(image_id, b"a")
    assert (writer.num_images, writer.num_repeats) == (2, 2)
    assert len(open_split(tmp_path / "train").images) == 2


def test_another_picture_with_the_same_id_is_an_error(tmp_path: Path) -> None:
    with (
        pytest.raises(TakenIdError, match="row 7: id 1 was given before") as caught,
        SplitWriter(tmp_path / "train") as writer,
    ):
        writer.add_image(1, b"a", "row 6")
        writer.add_image(1, b"b", "row 7")
    assert caught.value.reason.startswith("id 1 was given before with other content; give")
    assert names(tmp_path) == []


def test_a_split_can_be_put_in_place_before_the_others_may_build_it(tmp_path: Path) -> None:
    write_one(tmp_path / "train", b"old")
    with pytest.raises(RuntimeError), SplitWriter(tmp_path / "train") as writer:
        writer.add_image(1, b"new")
        writer.commit()
        assert open_split(tmp_path / "train").images.read(1) == b"new"
        with pytest.raises(DataError, match="another process"):
            write_one(tmp_path / "train", b"newer")
        raise RuntimeError  # too late to undo anything
    assert open_split(tmp_path / "train").images.read(1) == b"new"
    assert names(tmp_path) == ["train"]
    write_one(tmp_path / "train", b"newer")


def test_the_map_grows_with_what_is_in_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(growing_table, "_FIRST_MAP_BYTES", 1 << 14)
    monkeypatch.setattr(growing_table, "_BATCH_BYTES", 1 << 16)
    with SplitWriter(tmp_path / "train") as writer:
        for image_id in range(200):
            writer.add_image(image_id, bytes([image_id]) * 5000)
            writer.add_image(image_id, bytes([image_id]) * 5000)
    images = open_split(tmp_path / "train").images
    assert writer.num_repeats == len(images) == 200
    assert all(images.read(image_id) == bytes([image_id]) * 5000 for image_id in range(200))
    assert (tmp_path / "train" / "imgs" / "data.mdb").stat().st_size < 3 << 20


def test_the_map_has_room_for_keys_in_any_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(growing_table, "_FIRST_MAP_BYTES", 1 << 14)
    monkeypatch.setattr(growing_table, "_BATCH_BYTES", 1 << 14)
    numbers = random.Random(0)
    pictures = {numbers.getrandbits(62): numbers.randbytes(numbers.randrange(4000)) for _ in range(5000)}
    with SplitWriter(tmp_path / "train") as writer:
        for image_id, picture in pictures.items():
            writer.add_image(image_id, picture)
            writer.add_pair(image_id, 1, "x")
        assert all(writer.has_image(image_id) for image_id in pictures)
    images = open_split(tmp_path / "train").images
    assert {image_id: images.read(image_id) for image_id in images.ids()} == pictures


def test_nothing_of_the_memory_gets_into_the_file(tmp_path: Path) -> None:
    secrets = [b"a secret %d" % number * 400 for number in range(300)]
    del secrets
    write_one(tmp_path / "train", bytes(5000))
    for file in (tmp_path / "train").rglob("data.mdb"):
        assert b"a secret" not in file.read_bytes()


def test_the_reference_has_no_shards(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="format reference"):
        SplitWriter(tmp_path / "train", "reference", shard_bytes=1 << 30)
    with pytest.raises(ConfigError, match="0 bytes"):
        SplitWriter(tmp_path / "train", shard_bytes=0)


def test_a_folder_with_other_things_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "thesis.txt").write_text("years of work")
    with (
        pytest.raises(DataError, match=r"'thesis\.txt', which is no part of a split"),
        SplitWriter(tmp_path / "train"),
    ):
        pass
    assert (tmp_path / "train" / "thesis.txt").read_text() == "years of work"
    with pytest.raises(DataError, match="is a file"), SplitWriter(tmp_path / "train" / "thesis.txt"):
        pass


def test_two_builds_of_one_split_do_not_meet(tmp_path: Path) -> None:
    with SplitWriter(tmp_path / "train") as writer:
        writer.add_image(1, b"first")
        with (
            pytest.raises(DataError, match="being built by another process"),
            SplitWriter(tmp_path / "train"),
        ):
            pass
    assert open_split(tmp_path / "train").images.read(1) == b"first"


def test_a_link_to_a_split_stays_a_link(tmp_path: Path) -> None:
    write_one(tmp_path / "disk" / "train", b"old")
    (tmp_path / "lmdb").mkdir()
    (tmp_path / "lmdb" / "train").symlink_to(tmp_path / "disk" / "train")
    write_one(tmp_path / "lmdb" / "train", b"new")
    assert (tmp_path / "lmdb" / "train").is_symlink()
    assert open_split(tmp_path / "disk" / "train").images.read(1) == b"new"
    assert names(tmp_path / "disk") == ["train"]


def test_an_unknown_format_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="v2 or reference"):
        SplitWriter(tmp_path / "train", "v3")  # type: ignore[arg-type]


@pytest.mark.skipif(sys.platform == "win32", reason="needs RLIMIT_FSIZE")
def test_a_write_that_fails_says_so_and_leaves_nothing(tmp_path: Path) -> None:
    write_one(tmp_path / "train", b"old")
    code = f"""
from cn_clip.data.store import SplitWriter
from cn_clip.data.store.layout import Format
from cn_clip.errors import run_door
def main():
    with SplitWriter({str(tmp_path / "train")!r}) as writer:
        for image_id in range(1000):
            writer.add_image(image_id, bytes(50_000))
run_door(main)
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20)),
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: cannot write ") and "untouched" in done.stderr
    assert done.stderr.count("\n") == 1
    assert open_split(tmp_path / "train").images.read(1) == b"old"
    assert names(tmp_path) == ["train"]
