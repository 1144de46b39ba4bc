"""Builds that are killed, cut short, or run twice at once."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import lmdb
import pytest

ROOT = Path(__file__).resolve().parents[2]
DOOR = ROOT / "cn_clip/preprocess/build_lmdb_dataset.py"
Build = Callable[..., subprocess.CompletedProcess[str]]
Content = dict[str, dict[bytes, bytes]]


def command(data_dir: Path, *words: object) -> list[str]:
    return [sys.executable, str(DOOR), "--data_dir", str(data_dir), "--splits", "train", *map(str, words)]


def run(data_dir: Path, *words: object) -> float:
    """Seconds of a build that ends well."""
    started = time.monotonic()
    subprocess.run(command(data_dir, *words), check=True, capture_output=True)
    return time.monotonic() - started


def read_all(split: Path) -> Content:
    """Every key and value of every LMDB folder of a split."""
    content = {}
    for folder in sorted(path.parent for path in split.rglob("data.mdb")):
        with lmdb.open(str(folder), readonly=True, lock=False) as env, env.begin() as transaction:
            content[folder.name] = dict(transaction.cursor())
    return content


def processes_of(group: int) -> list[str]:
    """Names of the living processes of a group."""
    alive = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            name, _, rest = stat.read_text().partition(") ")
        except OSError:  # it ended meanwhile
            continue
        state, _, process_group = rest.split()[:3]
        if int(process_group) == group and state != "Z":
            alive.append(name)
    return alive


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_killed_build_can_be_repeated(write_many: Callable[..., Path], tmp_path: Path) -> None:
    """kill -9 at 20 moments: no process is left, the old split stays readable, and the next build gives the same as ever."""
    words = ("--decode", "--workers", 2, "--shard-size", "40MB")
    target = tmp_path / "lmdb" / "train"
    run(write_many(40, shade=1), *words)
    old = read_all(target)
    shutil.copytree(target, tmp_path / "old")
    write_many(1500, shade=2, captions_each=20)
    with begin(tmp_path, *words, "--lmdb_dir", tmp_path / "undisturbed") as process:
        started = time.monotonic()
    seconds = time.monotonic() - started
    new = read_all(tmp_path / "undisturbed" / "train")
    moments = random.Random(0)
    num_killed = num_midway = 0
    for _ in range(20):
        with begin(tmp_path, *words) as process:
            time.sleep(moments.random() * seconds)
            process.send_signal(signal.SIGKILL)
        num_killed += process.returncode == -signal.SIGKILL
        num_midway += (tmp_path / "lmdb" / ".train.building" / "imgs").exists()
        assert processes_of(process.pid) == []
        there = read_all(target)
        assert there in (old, new)
        if there == new:  # this one was done, and the next is to replace something again
            shutil.rmtree(target)
            shutil.copytree(tmp_path / "old", target)
    assert num_killed >= 10
    assert num_midway >= 5
    run(tmp_path, *words)
    assert read_all(target) == new
    assert os.listdir(tmp_path / "lmdb") == ["train"]


def begin(data_dir: Path, *words: object) -> subprocess.Popen[bytes]:
    """A build in a process group of its own that has read its flags."""
    process = subprocess.Popen(command(data_dir, *words), stdout=subprocess.PIPE, start_new_session=True)
    assert process.stdout is not None
    assert process.stdout.readline().startswith(b"Building")
    return process


def test_an_interrupted_build(write_many: Callable[..., Path], tmp_path: Path) -> None:
    """Ctrl-C while threads decode: one word, and nothing left."""
    with subprocess.Popen(
        command(write_many(400), "--decode", "--workers", 2),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        wait_for(tmp_path / "lmdb" / ".train.building" / "imgs" / "data.mdb")
        process.send_signal(signal.SIGINT)
        _, said = process.communicate()
    assert (process.returncode, said) == (130, "interrupted\n")
    assert os.listdir(tmp_path / "lmdb") == []


def test_two_builds_of_one_split_at_once(write_many: Callable[..., Path], tmp_path: Path) -> None:
    with begin(write_many(400)) as first:
        wait_for(tmp_path / "lmdb" / ".train.building" / "pairs" / "data.mdb")
        first.send_signal(signal.SIGSTOP)
        second = subprocess.run(command(tmp_path), capture_output=True, text=True)
        first.send_signal(signal.SIGCONT)
    assert second.returncode == 2
    assert "is being built by another process" in second.stderr
    assert first.returncode == 0
    assert len(read_all(tmp_path / "lmdb" / "train")["pairs"]) > 400
    assert os.listdir(tmp_path / "lmdb") == ["train"]


def wait_for(path: Path) -> None:
    until = time.monotonic() + 30
    while not path.exists():
        assert time.monotonic() < until, f"{path} did not come"
        time.sleep(0.005)


@pytest.mark.parametrize("file", ["train_imgs.tsv", "train_texts.jsonl"])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.77])
def test_a_file_cut_anywhere_is_named(
    write_many: Callable[..., Path], tmp_path: Path, file: str, share: float
) -> None:
    run(write_many(3))
    old = read_all(tmp_path / "lmdb" / "train")
    path = tmp_path / file
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    done = subprocess.run(command(tmp_path), capture_output=True, text=True)
    assert done.returncode == 2
    assert file in done.stderr and done.stderr.count("\n") == 1
    assert ("may be cut" if share else "is empty") in done.stderr
    assert read_all(tmp_path / "lmdb" / "train") == old
