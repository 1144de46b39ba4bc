"""The build command from end to end: what it writes, what it says, and what is left when it ends badly."""

from __future__ import annotations

import base64
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

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


def write_many(write_split: Callable[..., Path], num_pictures: int, shade: int) -> Path:
    """Pictures of 100 kB each (BMP), a caption each."""
    picture = b"BM" + (54 + 3 * 180 * 180).to_bytes(4, "little") + bytes(4) + (54).to_bytes(4, "little")
    picture += (40).to_bytes(4, "little") + (180).to_bytes(4, "little") * 2 + b"\1\0\x18\0" + bytes(24)
    rng = random.Random(shade)
    pictures = {number: picture + rng.randbytes(3 * 180 * 180) for number in range(num_pictures)}
    return write_split(
        "train", pictures, [(number, f"第{number}", [number]) for number in range(num_pictures)]
    )


def test_a_killed_build_can_be_repeated(
    write_split: Callable[..., Path], build: Build, tmp_path: Path
) -> None:
    """kill -9 at many moments: the old split stays readable, and the next build gives the same as an undisturbed one."""
    write_many(write_split, 40, shade=1)
    assert build(tmp_path).returncode == 0
    old = content(tmp_path / "lmdb" / "train")
    write_many(write_split, 60, shade=2)
    assert build(tmp_path, "--lmdb_dir", tmp_path / "undisturbed").returncode == 0
    new = content(tmp_path / "undisturbed" / "train")
    command = [sys.executable, str(ROOT / DOOR), "--data_dir", str(tmp_path), "--splits", "train"]
    num_killed = 0
    for delay_seconds in random.Random(0).sample([0.02 * step for step in range(1, 40)], 12):
        with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            process.stdout.readline()  # it started to build
            time.sleep(delay_seconds)
            process.send_signal(signal.SIGKILL)
        num_killed += process.returncode == -signal.SIGKILL
        assert content(tmp_path / "lmdb" / "train") in (old, new)
    assert num_killed > 0
    assert build(tmp_path).returncode == 0
    assert content(tmp_path / "lmdb" / "train") == new
    assert os.listdir(tmp_path / "lmdb") == ["train"]


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
    write_split: Callable[..., Path], build: Build, small_disk: Path, tmp_path: Path
) -> None:
    write_split()
    assert build(tmp_path, "--lmdb_dir", small_disk).returncode == 0
    old = content(small_disk / "train")
    write_many(write_split, 60, shade=1)
    expect_error(build(tmp_path, "--lmdb_dir", small_disk), "the disk is full", "untouched")
    assert os.listdir(small_disk) == ["train"]
    assert content(small_disk / "train") == old


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_does_not_grow_with_the_rows(write_split: Callable[..., Path], tmp_path: Path) -> None:
    """Peak of the process at 20 MB of pictures and at 80 MB: the same within what a batch holds."""
    code = (
        "import sys; from pathlib import Path; from cn_clip.preprocess.build_lmdb_dataset import main\n"
        "main(sys.argv[1:]); print(Path('/proc/self/status').read_text().split('VmHWM:')[1].split()[0])"
    )
    peaks_kb = []
    for num_pictures in (200, 800):
        write_many(write_split, num_pictures, shade=1)
        words = ["--data_dir", str(tmp_path), "--splits", "train"]
        done = subprocess.run(
            [sys.executable, "-c", code, *words], capture_output=True, text=True, check=True, cwd=ROOT
        )
        peaks_kb.append(int(done.stdout.split()[-1]))
    assert peaks_kb[1] - peaks_kb[0] < 20_000


def test_help_needs_no_torch() -> None:
    code = (
        "import sys; from cn_clip.preprocess.build_lmdb_dataset import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: print(sorted({'torch', 'lmdb', 'PIL'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.splitlines()[-1] == "[]"
