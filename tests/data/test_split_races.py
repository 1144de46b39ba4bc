"""Two processes that build one split: the second is refused from the first one's first moment to its last."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from cn_clip.data.store import SplitWriter, open_split, replacement
from cn_clip.errors import DataError

NUM_OF_FIRST = 5
FIRST = f"""
import os, sys, time
from pathlib import Path
from cn_clip.data.store import SplitWriter, replacement

target, signals = Path(sys.argv[1]), Path(sys.argv[2])

def pause():
    (signals / "reached").touch()
    while not (signals / "go").exists():
        time.sleep(0.01)

exec(sys.argv[3])
with SplitWriter(target) as writer:
    for number in range({NUM_OF_FIRST}):
        writer.add_image(number, b"first %d" % number)
        writer.add_pair(number, number, "first")
"""
NO_EXCHANGE = "replacement._exchange = lambda first, second: False\n"
WHILE_DELETING = """
unlink = os.unlink
def paused(*words, **options):
    pause()
    unlink(*words, **options)
os.unlink = paused
"""
BETWEEN_THE_RENAMES = """
rename = Path.rename
def paused(path, place):
    if path.name == ".train.building":
        pause()
    return rename(path, place)
Path.rename = paused
"""


def write(target: Path, num_pictures: int) -> None:
    with SplitWriter(target) as writer:
        for number in range(num_pictures):
            writer.add_image(number, b"%d of %d" % (number, num_pictures))
            writer.add_pair(number, number, "x")


@contextmanager
def first_build(tmp_path: Path, slowed: str) -> Iterator[subprocess.Popen[str]]:
    """A build that stands at the moment of `slowed`, until the file `go` is there."""
    signals = tmp_path / "signals"
    signals.mkdir()
    words = [sys.executable, "-c", FIRST, str(tmp_path / "lmdb" / "train"), str(signals), slowed]
    with subprocess.Popen(words, stderr=subprocess.PIPE, text=True) as process:
        try:
            until = time.monotonic() + 60
            while not (signals / "reached").exists():
                assert process.poll() is None and time.monotonic() < until, "it did not come so far"
                time.sleep(0.01)
            yield process
        finally:
            process.kill()


def names(tmp_path: Path) -> list[str]:
    return sorted(child.name for child in (tmp_path / "lmdb").iterdir())


@pytest.mark.parametrize(
    "slowed",
    [WHILE_DELETING, NO_EXCHANGE + WHILE_DELETING, NO_EXCHANGE + BETWEEN_THE_RENAMES],
    ids=["deleting", "deleting without exchange", "between the renames"],
)
def test_a_second_build_is_refused_until_the_first_has_cleared_up(tmp_path: Path, slowed: str) -> None:
    target = tmp_path / "lmdb" / "train"
    write(target, 3)
    with first_build(tmp_path, slowed) as first:
        with pytest.raises(DataError, match="being built by another process"):
            write(target, 7)
        (tmp_path / "signals" / "go").touch()
        assert (first.communicate()[1], first.returncode) == ("", 0)
    split = open_split(target)
    pictures = {image_id: split.images.read(image_id) for image_id in split.images.ids()}
    assert pictures == {number: b"first %d" % number for number in range(NUM_OF_FIRST)}
    assert names(tmp_path) == ["train"]
    write(target, 7)
    assert len(open_split(target).pairs) == 7
    assert names(tmp_path) == ["train"]


@pytest.mark.parametrize("exchange", [True, False])
def test_what_a_build_leaves_that_is_killed_while_it_clears_up(
    tmp_path: Path, exchange: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "lmdb" / "train"
    write(target, 3)
    with first_build(tmp_path, WHILE_DELETING if exchange else NO_EXCHANGE + WHILE_DELETING) as first:
        first.kill()
    assert len(open_split(target).pairs) == NUM_OF_FIRST
    if not exchange:
        monkeypatch.setattr(replacement, "_exchange", lambda first, second: False)
    write(target, 7)
    assert len(open_split(target).pairs) == 7
    assert names(tmp_path) == ["train"]
