"""An import that is killed at any moment: nothing half-written, and the next call ends as if nothing had happened."""

from __future__ import annotations

import io
import json
import random
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest

Encode = Callable[..., bytes]
NUM_KILLS = 12
# the command as it is; only that it records its progress more often than every two seconds
OFTEN = """
import sys
from cn_clip.preprocess.importing import parts_reader
parts_reader.CHECKPOINT_ITEMS = 100
from cn_clip.preprocess.import_dataset import main
main(sys.argv[1:])
"""
# kills itself when it is about to move, build or delete for the n-th time
AT_THE_END = """
import os, signal, sys
from pathlib import Path
count = int(sys.argv.pop(1))
def dying(call):
    def instead(*words, **named):
        global count
        count -= 1
        if count == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return call(*words, **named)
    return instead
from cn_clip.preprocess.importing import finish
os.replace, Path.unlink = dying(os.replace), dying(Path.unlink)
finish._build = dying(finish._build)
from cn_clip.preprocess.import_dataset import main
main(sys.argv[1:])
"""


def command(code: str, *words: object) -> list[str]:
    return [sys.executable, "-c", code, *map(str, words)]


def visible(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("[!.]*") if path.is_file()}


def write_csv(folder: Path, encode: Encode, count: int) -> tuple[object, ...]:
    """Pictures with two captions each, one of them far from the other, and every ninth row bad."""
    (folder / "images").mkdir()
    rows = ["image,caption"]
    for number in range(count):
        (folder / "images" / f"{number}.jpg").write_bytes(encode(number))
        rows += [f"{number}.jpg,图{number}", f"{number * 7 % count}.jpg,又{number}"]
        rows += [f"none{number}.jpg,x"] if number % 9 == 0 else []
    (folder / "c.csv").write_text("\n".join(rows), encoding="utf-8")
    words = ("--image-dir", folder / "images", "--captions", folder / "c.csv", "--valid-share", "0.2")
    return ("folder", *words, "--bad-rows", "skip", "--max-bad-share", "0.5", "--workers", "2")


def write_tars(folder: Path, encode: Encode, count: int) -> tuple[object, ...]:
    (folder / "tars").mkdir()
    for shard in range(6):
        with tarfile.open(folder / "tars" / f"{shard:05d}.tar", "w") as tar:
            for number in range(count // 6):
                members = {"jpg": encode(shard * 1000 + number), "txt": f"图{shard} {number}".encode()}
                for ending, content in members.items():
                    info = tarfile.TarInfo(f"{number:06d}.{ending}")
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))
    return ("webdataset", "--tars", folder / "tars", "--max-px", "10", "--workers", "2")


@pytest.mark.slow
@pytest.mark.parametrize("write", [write_csv, write_tars])
def test_killed_at_random_moments(
    tmp_path: Path, encode_picture: Encode, write: Callable[..., tuple]
) -> None:
    words = write(tmp_path, encode_picture, 1800)
    whole, out, generator = tmp_path / "whole", tmp_path / "out", random.Random(1)
    subprocess.run(command(OFTEN, *words, "--output-dir", whole), check=True, capture_output=True)
    num_bytes = sum(map(len, visible(whole).values()))
    num_killed = 0
    for number in range(NUM_KILLS):
        killed_at = num_bytes * (number + generator.random()) / NUM_KILLS
        num_killed += run_and_kill(command(OFTEN, *words, "--output-dir", out), out / ".importing", killed_at)
        assert visible(out) == {}
    assert num_killed >= NUM_KILLS - 2
    done = subprocess.run(
        command(OFTEN, *words, "--output-dir", out), check=True, capture_output=True, text=True
    )
    assert "rows read before the interruption: " in done.stdout
    assert visible(out) == visible(whole)
    assert not list(out.glob(".*"))


def run_and_kill(words: list[str], work: Path, num_bytes: float) -> bool:
    """Whether it had to be killed: when the growing files have that many bytes."""
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    while process.poll() is None and size_of(work) < num_bytes:
        time.sleep(0.001)
    process.kill()
    _, errors = process.communicate()
    assert process.returncode in (0, -signal.SIGKILL), errors
    return process.returncode != 0


def size_of(work: Path) -> int:
    try:
        return sum(path.stat().st_size for path in work.iterdir() if "progress" not in path.name)
    except FileNotFoundError:  # not there yet, or moved meanwhile
        return 0


@pytest.mark.parametrize("to", ["tsv", "lmdb"])
def test_killed_while_files_take_their_places(tmp_path: Path, encode_picture: Encode, to: str) -> None:
    words = (*write_csv(tmp_path, encode_picture, 30), "--to", to)
    whole = tmp_path / "whole"
    subprocess.run(command(OFTEN, *words, "--output-dir", whole), check=True, capture_output=True)
    num_killed = 0
    for count in range(1, 40, 3):
        out = tmp_path / f"out{count}"
        killed = subprocess.run(
            command(AT_THE_END, count, *words, "--output-dir", out), capture_output=True, text=True
        )
        num_killed += killed.returncode == -signal.SIGKILL
        if killed.returncode == 0:
            break
        again = subprocess.run(command(OFTEN, *words, "--output-dir", out), capture_output=True, text=True)
        assert again.returncode == 0, again.stderr
        assert visible(out) == visible(whole)
        assert not list(out.glob(".*")) and (out / "lmdb").exists() == (to == "lmdb")
    assert num_killed >= 2


def test_an_older_import_is_whole_until_the_new_one_is(tmp_path: Path, encode_picture: Encode) -> None:
    words = (*write_csv(tmp_path, encode_picture, 30), "--output-dir", tmp_path / "out")
    subprocess.run(command(OFTEN, *words), check=True, capture_output=True)
    before = visible(tmp_path / "out")
    (tmp_path / "images" / "29.jpg").write_bytes(b"broken now")
    done = subprocess.run(command(OFTEN, *words, "--bad-rows", "stop"), capture_output=True, text=True)
    assert done.returncode != 0 and visible(tmp_path / "out") == before


@pytest.mark.parametrize("door", ["cn_clip/preprocess/import_dataset.py", "data_tools/import_dataset.py"])
def test_the_command_by_its_names(
    tmp_path: Path, encode_picture: Encode, run_ours: Callable[..., object], door: str
) -> None:
    words = (*write_csv(tmp_path, encode_picture, 12), "--output-dir", tmp_path / "out")
    done = run_ours(door, *words)
    assert done.returncode == 0 and done.stderr == "", done.stderr  # the bar is for terminals
    assert done.stdout.splitlines()[-1].startswith("Next: cn-clip build-lmdb --data_dir ")
    assert "bad rows passed over: 2 (" in done.stdout
    assert len(list(map(json.loads, (tmp_path / "out" / "bad_rows.jsonl").read_text().splitlines()))) == 2
    again = run_ours(door, "folder", "--image-dir", "nowhere", "--output-dir", tmp_path)
    assert again.returncode == 2 and again.stderr.startswith("error: --image-dir nowhere is not a folder")


def test_help_of_every_kind_needs_no_torch(tmp_path: Path) -> None:
    code = """
import sys
from cn_clip.preprocess.importing.command import kinds
from cn_clip.preprocess.import_dataset import main
assert len(kinds()) >= 8
for words in ([], *([kind] for kind in kinds())):
    try:
        main([*words, "--help"])
    except SystemExit as end:
        assert not end.code, end.code
heavy = {"torch", "PIL", "numpy", "pyarrow", "lmdb"} & set(sys.modules)
assert not heavy, heavy
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parents[3]
    )
    assert done.returncode == 0, done.stderr
    for word in ("webdataset", "--max-px", "--split-by", "flickr30k-cn", "--name-column"):
        assert word in done.stdout
