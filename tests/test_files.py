"""Files are whole or not there; a full disk is one sentence."""

from __future__ import annotations

import errno
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import BinaryIO

import pytest
import torch

from cn_clip.errors import run_door
from cn_clip.files import atomic_path, write_atomically


def test_content_appears_whole(tmp_path: Path) -> None:
    write_atomically(tmp_path / "a", b"new")
    assert (tmp_path / "a").read_bytes() == b"new"
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_an_error_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"old")
    with pytest.raises(ZeroDivisionError), atomic_path(tmp_path / "a") as partial:
        partial.write_bytes(b"half")
        1 / 0  # noqa: B018
    assert (tmp_path / "a").read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_permissions_are_those_of_an_ordinary_file(tmp_path: Path) -> None:
    (tmp_path / "plain").write_bytes(b"")
    write_atomically(tmp_path / "a", b"")
    assert (tmp_path / "a").stat().st_mode == (tmp_path / "plain").stat().st_mode


def full_disk(file: BinaryIO) -> None:
    """As torch does it: the zip writer meets the full disk, then fails on its own account."""
    try:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    except OSError:
        raise RuntimeError("unexpected pos 3125248 vs 3125136")  # noqa: B904


def test_a_full_disk_behind_another_error_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        run_door(lambda: write_atomically(tmp_path / "epoch1.pt", full_disk))
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "the disk is full" in said and "epoch1.pt" in said
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_torch_on_a_really_full_device(capsys: pytest.CaptureFixture[str]) -> None:
    def save(file: BinaryIO) -> None:
        with Path("/dev/full").open("wb", buffering=0) as full:
            torch.save({"a": torch.zeros(100_000)}, full)

    with pytest.raises(SystemExit) as ended:
        run_door(lambda: write_atomically(Path(os.devnull).with_name("shm") / "cn_clip_full.pt", save))
    assert ended.value.code == 2 and "the disk is full" in capsys.readouterr().err


def too_large(_: BinaryIO) -> None:
    try:
        raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))
    except OSError:
        raise RuntimeError("unexpected pos 174016 vs 173904")  # noqa: B904


def test_a_limit_of_files_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        run_door(lambda: write_atomically(tmp_path / "epoch1.pt", too_large))
    assert ended.value.code == 2
    assert re.fullmatch(
        r"error: .*/epoch1\.pt cannot be read or written \(.*\): .*\n", capsys.readouterr().err
    )


def test_other_errors_of_the_system_are_ours(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        run_door(lambda: (tmp_path / "none").read_bytes())


@pytest.mark.skipif(sys.platform != "linux", reason="no such names elsewhere")
def test_ranks_that_end_for_the_same_reason_say_it_once() -> None:
    rank = "from cn_clip.errors import *; import time\ndef f(): raise DataError('no data')\n"
    rank += (
        "import cn_clip.errors as e; leave = e._leave; e._leave = lambda code: (time.sleep(1), leave(code))\n"
    )
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", rank + "run_door(f)"],
            env={**os.environ, "LOCAL_RANK": number},
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in "01"
    ]
    said = [process.communicate(timeout=60)[1] for process in ranks]
    assert sorted(said) == ["", "error: no data\n"]
    assert [process.returncode for process in ranks] == [2, 2]
