"""The build command from end to end: what it writes, what it says, and what is left when it ends badly."""

from __future__ import annotations

import base64
import io
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from PIL import Image

from cn_clip.clip import image_transform
from cn_clip.clip.tokenizer import caption_ids, tokenizer_fingerprint
from cn_clip.data.store import PairRecord, open_split

DOOR = "cn_clip/preprocess/build_lmdb_dataset.py"
ROOT = Path(__file__).resolve().parents[2]
Build = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def build(run_ours: Build) -> Build:
    def run(data_dir: Path, *words: object, splits: str = "train") -> subprocess.CompletedProcess[str]:
        return run_ours(DOOR, "--data_dir", data_dir, "--splits", splits, *words)

    return run


def expect_error(done: subprocess.CompletedProcess[str], *parts: str) -> None:
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1, done.stderr
    for part in parts:
        assert part in done.stderr


def content(split: Path) -> tuple[list[PairRecord], dict[int, bytes]]:
    store = open_split(split)
    return (
        [store.pairs.read(index) for index in range(len(store.pairs))],
        {image_id: store.images.read(image_id) for image_id in store.images.ids()},
    )


@pytest.mark.parametrize("store_format", ["v2", "reference"])
def test_a_build(write_split: Callable[..., Path], build: Build, store_format: str) -> None:
    write_split("train")
    data_dir = write_split("valid")
    done = build(data_dir, "--format", store_format, splits="train, valid,train")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""  # the bar is for terminals
    assert done.stdout.splitlines()[-1] == "done!"
    assert "train: 2 pictures, 3 captions, 3 pairs; 1 captions without image ids make no pair" in done.stdout
    for split in ("train", "valid"):
        pairs, pictures = content(data_dir / "lmdb" / split)
        assert pairs == [PairRecord(7, 1, "红色"), PairRecord(7, 2, "一张图"), PairRecord(12, 2, "一张图")]
        assert sorted(pictures) == [7, 12]
    assert sorted(os.listdir(data_dir / "lmdb")) == ["train", "valid"]


def test_lmdb_dir_and_a_rebuild(write_split: Callable[..., Path], build: Build, tmp_path: Path) -> None:
    assert build(write_split(), "--lmdb_dir", tmp_path / "other" / "place").returncode == 0
    only = {5: (tmp_path / "train_imgs.tsv").read_bytes()}
    row = only[5].splitlines()[0].replace(b"7\t", b"5\t")
    assert (
        build(
            write_split("train", row, [(9, "b", [5])]), "--lmdb_dir", tmp_path / "other" / "place"
        ).returncode
        == 0
    )
    pairs, pictures = content(tmp_path / "other" / "place" / "train")
    assert pairs == [PairRecord(5, 9, "b")]
    assert sorted(pictures) == [5]  # nothing of the old split is left


def test_sizes_and_tokens_are_kept(write_split: Callable[..., Path], build: Build) -> None:
    data_dir = write_split("train", None, [(1, "“Red” 红色", [7]), (2, "一张图", [7, 12])])
    assert build(data_dir).returncode == 0
    split = open_split(data_dir / "lmdb" / "train")
    facts = split.images.facts(7)
    assert facts is not None and (facts.width_px, facts.height_px) == (12, 8)
    assert split.tokens is not None and split.tokens.tokenizer == tokenizer_fingerprint()
    tokens = [split.tokens.read(index).tolist() for index in range(3)]
    assert tokens == [caption_ids('"red" 红色'), caption_ids("一张图"), caption_ids("一张图")]


def test_without_tokens(write_split: Callable[..., Path], build: Build) -> None:
    data_dir = write_split()
    assert build(data_dir, "--no-tokens").returncode == 0
    assert open_split(data_dir / "lmdb" / "train").tokens is None


def test_pictures_of_every_mode_are_built_and_read(
    write_split: Callable[..., Path], build: Build, pictures_of_every_mode: dict[str, bytes]
) -> None:
    pictures = dict(enumerate(pictures_of_every_mode.values()))
    data_dir = write_split("train", pictures, [(1, "都", list(pictures))])
    done = build(data_dir, "--decode")
    assert done.returncode == 0, done.stderr
    images = open_split(data_dir / "lmdb" / "train").images
    prepare = image_transform(16)
    for number, mode in enumerate(pictures_of_every_mode):
        with Image.open(io.BytesIO(images.read(number))) as image:
            assert image.mode == mode
            assert prepare(image).shape == (3, 16, 16)


def test_rows_are_added_to_a_split(
    write_split: Callable[..., Path], build: Build, encode_picture: Callable[..., bytes]
) -> None:
    build(write_split())
    data_dir = write_split("train", {3: encode_picture((0, 9, 0))}, [(4, "绿色", [3]), (5, "又红", [7])])
    done = build(data_dir, "--append")
    assert done.returncode == 0, done.stderr
    assert "train: 1 pictures, 2 captions, 2 pairs; 3 pictures and 5 pairs in all" in done.stdout
    pairs, pictures = content(data_dir / "lmdb" / "train")
    assert pairs[3:] == [PairRecord(3, 4, "绿色"), PairRecord(7, 5, "又红")]
    assert sorted(pictures) == [3, 7, 12]
    # captions of pictures that are there need no picture file again, and the other way round
    done = build(write_split("train", b"", [(6, "蓝", [12])]), "--append")
    assert "0 pictures, 1 captions, 1 pairs; 3 pictures and 6 pairs in all" in done.stdout, done.stderr
    done = build(write_split("train", {13: encode_picture((0, 0, 9))}, b""), "--append")
    assert "1 pictures, 0 captions, 0 pairs; 4 pictures and 6 pairs in all" in done.stdout, done.stderr
    expect_error(build(write_split("train", b"", [(6, "蓝", [14])]), "--append"), "row 1, field image_ids")
    assert len(content(data_dir / "lmdb" / "train")[0]) == 6


def test_pictures_in_several_folders(write_many: Callable[..., Path], build: Build) -> None:
    data_dir = write_many(8)
    done = build(data_dir, "--shard-size", "250KB")
    assert done.returncode == 0, done.stderr
    assert "8 pairs; the pictures lie in 4 folders (" in done.stdout
    assert len(list((data_dir / "lmdb" / "train").glob("imgs*"))) == 4
    assert len(content(data_dir / "lmdb" / "train")[1]) == 8


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["--shard-size", "many"], "--shard_size 'many' is not a size"),
        (["--shard_size", "10GB", "--format", "reference"], "leave out --shard_size"),
        (["--shard-size", "1"], "--shard_size '1' is 1 byte"),
        (["--max-bad-share=1.5"], "--max-bad-share is a share"),
        (["--workers", "-1"], "--workers is a number"),
    ],
)
def test_wrong_flags(write_split: Callable[..., Path], build: Build, words: list[str], part: str) -> None:
    data_dir = write_split()
    expect_error(build(data_dir, *words), part)
    assert not (data_dir / "lmdb").exists() or os.listdir(data_dir / "lmdb") == []


def test_hyphens_are_as_good_as_underscores(write_split: Callable[..., Path], run_ours: Build) -> None:
    data_dir = write_split()
    done = run_ours(DOOR, f"--data-dir={data_dir}", "--splits", "train", "--lmdb-dir", data_dir / "a-b")
    assert done.returncode == 0, done.stderr
    assert os.listdir(data_dir / "a-b") == ["train"]


def test_captions_without_pictures_make_an_empty_set(write_split: Callable[..., Path], build: Build) -> None:
    data_dir = write_split("test", None, [(1, "红色", []), (2, "蓝色", [])])
    assert build(data_dir, splits="test").returncode == 0
    assert len(open_split(data_dir / "lmdb" / "test").pairs) == 0


def test_repeated_rows_are_kept_once_and_counted(
    write_split: Callable[..., Path], build: Build, tmp_path: Path
) -> None:
    write_split()
    tsv = (tmp_path / "train_imgs.tsv").read_bytes()
    done = build(write_split("train", tsv + b"\n" + tsv))
    assert "2 pictures" in done.stdout
    assert "2 repeated rows of the same picture kept once; 1 captions" in done.stdout
    assert "1 blank lines passed over" in done.stdout


def test_two_pictures_with_one_id(
    write_split: Callable[..., Path], build: Build, encode_picture: Callable[..., bytes]
) -> None:
    rows = [b"7\t" + base64.b64encode(encode_picture((shade, 0, 0))) for shade in (1, 2)]
    data_dir = write_split("train", b"\n".join(rows))
    expect_error(build(data_dir), "train_imgs.tsv row 2: id 7 was given before")
    assert os.listdir(data_dir / "lmdb") == []


def test_captions_that_name_missing_pictures(write_split: Callable[..., Path], build: Build) -> None:
    data_dir = write_split(
        "train", None, [(1, "a", [7]), (2, "b", [7, *range(100, 150)]), (3, "c", [100, 7000])]
    )
    expect_error(
        build(data_dir),
        "train_texts.jsonl row 2, field image_ids: 51 picture ids that train_imgs.tsv does not have",
        "(100, 101, 102, 103, 104, …)",
    )


@pytest.mark.parametrize(
    ("splits", "part"),
    [
        ("trian", "did you mean --splits train?"),
        ("nothing_alike", "has train"),
        (" , ", "names no split"),
        ("../train", "cannot name a split"),
        ("", "names no split"),
    ],
)
def test_a_wrong_split_name(write_split: Callable[..., Path], build: Build, splits: str, part: str) -> None:
    expect_error(build(write_split(), splits=splits), part)


def test_nothing_is_built_when_a_later_split_is_missing(
    write_split: Callable[..., Path], build: Build
) -> None:
    data_dir = write_split()
    expect_error(build(data_dir, splits="train,valid"), "valid_imgs.tsv does not exist")
    assert not (data_dir / "lmdb").exists()


@pytest.mark.parametrize("empty", ["pictures", "captions"])
@pytest.mark.parametrize("content", [b"", b"\n \n"])
def test_empty_files(write_split: Callable[..., Path], build: Build, empty: str, content: bytes) -> None:
    name = "train_imgs.tsv" if empty == "pictures" else "train_texts.jsonl"
    expect_error(build(write_split("train", **{empty: content})), name)


def test_a_missing_folder(build: Build, tmp_path: Path) -> None:
    expect_error(build(tmp_path / "nowhere"), "--data_dir", "is not a folder")


def test_a_folder_that_cannot_be_written(write_split: Callable[..., Path], build: Build) -> None:
    data_dir = write_split()
    (data_dir / "file").write_text("")
    expect_error(build(data_dir, "--lmdb_dir", data_dir / "file" / "lmdb"), "cannot write into")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=4m", "none", str(disk)], capture_output=True, check=False
    )
    if mounted.returncode != 0:
        pytest.skip("may not mount here")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_a_full_disk(
    write_split: Callable[..., Path],
    write_many: Callable[..., Path],
    build: Build,
    small_disk: Path,
    tmp_path: Path,
) -> None:
    write_split()
    assert build(tmp_path, "--lmdb_dir", small_disk).returncode == 0
    old = content(small_disk / "train")
    write_many(60)
    expect_error(build(tmp_path, "--lmdb_dir", small_disk), "the disk is full", "untouched")
    assert os.listdir(small_disk) == ["train"]
    assert content(small_disk / "train") == old


def test_help_needs_no_torch() -> None:
    code = (
        "import sys; from cn_clip.preprocess.build_lmdb_dataset import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: print(sorted({'torch', 'lmdb', 'PIL', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.splitlines()[-1] == "[]"
