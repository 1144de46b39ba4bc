"""One holder at a time, whatever the others do meanwhile."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from cn_clip.data.store.file_lock import FileLock

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="no locks there")

COUNT = """
import sys, time
from pathlib import Path
from cn_clip.data.store.file_lock import FileLock
counter = Path(sys.argv[1])
for _ in range(int(sys.argv[2])):
    lock = FileLock(counter.with_name("lock"))
    while not lock.acquire():
        time.sleep(0.0001)
    number = int(counter.read_text())
    time.sleep(0.0001)
    counter.write_text(str(number + 1))
    lock.release()
"""


def test_one_holder(tmp_path: Path) -> None:
    first, second = FileLock(tmp_path / "lock"), FileLock(tmp_path / "lock")
    second.release()
    assert first.acquire() and first.is_held
    assert not second.acquire() and not second.is_held
    first.release()
    assert list(tmp_path.iterdir()) == []
    assert second.acquire()
    second.release()


def test_nobody_gets_between_two_holders(tmp_path: Path) -> None:
    """The file goes and comes while others wait for it: no count is lost."""
    counter = tmp_path / "counter"
    counter.write_text("0")
    words = [sys.executable, "-c", COUNT, str(counter), "300"]
    processes = [subprocess.Popen(words) for _ in range(4)]
    assert [process.wait(60) for process in processes] == [0] * 4
    assert counter.read_text() == "1200"
    assert list(tmp_path.iterdir()) == [counter]


def test_a_killed_holder_holds_nothing(tmp_path: Path) -> None:
    code = f"""
import os, signal
from pathlib import Path
from cn_clip.data.store.file_lock import FileLock
assert FileLock(Path({str(tmp_path / "lock")!r})).acquire()
os.kill(os.getpid(), signal.SIGKILL)
"""
    assert subprocess.run([sys.executable, "-c", code]).returncode < 0
    lock = FileLock(tmp_path / "lock")
    assert (tmp_path / "lock").exists() and lock.acquire()
    lock.release()
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_cannot_be_made_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No such file"):
        FileLock(tmp_path / "nowhere" / "lock").acquire()


def test_shared_holders(tmp_path: Path) -> None:
    first, second, alone = (FileLock(tmp_path / "lock") for _ in range(3))
    assert first.acquire(shared=True) and second.acquire(shared=True)
    assert not alone.acquire_within(0.2)
    first.release()
    # the file stays for the other
    assert (tmp_path / "lock").exists() and not alone.acquire()
    second.release()
    assert list(tmp_path.iterdir()) == []
    assert alone.acquire()
    assert not first.acquire(shared=True)
    alone.release()
