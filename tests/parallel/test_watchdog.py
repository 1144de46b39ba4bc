"""Two ranks of which one is killed, stopped or broken: the other ends soon, with a sentence that names it."""

from __future__ import annotations

import contextlib
import faulthandler
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from cn_clip.parallel import watchdog
from cn_clip.parallel.ranks import Ranks
from cn_clip.parallel.watchdog import LOST, Note, Watchdog, describe

ROOT = Path(__file__).resolve().parents[2]
WORKER = Path(__file__).with_name("watchdog_worker.py")
CASES = {
    "killed": ("100", "-1"),
    "first killed": ("100", "-1"),
    "stopped": ("2", "-1"),
    "broken": ("100", "1"),
}
"""Seconds of the timeout, rank that breaks by itself."""


@dataclass
class Pair:
    """Two ranks of one case."""

    folder: Path
    timeout: str
    breaks: str
    processes: list[subprocess.Popen[str]] = field(default_factory=list)

    def start(self) -> None:
        with socket.socket() as probe:
            probe.bind(("", 0))
            port = probe.getsockname()[1]
        for rank in (0, 1):
            meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2"}
            self.processes.append(
                subprocess.Popen(
                    [sys.executable, str(WORKER), self.timeout, str(self.folder), self.breaks],
                    env={
                        **os.environ,
                        **meeting,
                        "RANK": str(rank),
                        "LOCAL_RANK": str(rank),
                        "PYTHONPATH": str(ROOT),
                        "TORCH_CPP_LOG_LEVEL": "ERROR",
                    },
                    stderr=subprocess.PIPE,
                    text=True,
                )  # fmt: skip
            )

    def signal(self, rank: int, number: signal.Signals) -> None:
        """Once both ranks are stepping."""
        until = time.monotonic() + 120
        while not all((self.folder / f"pid{each}").exists() for each in (0, 1)):
            assert time.monotonic() < until, "the ranks did not begin"
            time.sleep(0.05)
        self.processes[rank].send_signal(number)

    def end_of(self, rank: int) -> tuple[int, str]:
        """Exit code and what was said, within the time that a run may take to notice."""
        said = self.processes[rank].communicate(timeout=60)[1]
        return self.processes[rank].returncode, said


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Pair]]:
    """All cases, started at once: most of their time is Python's beginning."""
    found = {
        name: Pair(tmp_path_factory.mktemp("ranks"), timeout, breaks)
        for name, (timeout, breaks) in CASES.items()
    }
    for pair in found.values():
        pair.start()
    yield found
    for process in (process for pair in found.values() for process in pair.processes):
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        process.communicate()


@pytest.mark.slow
@pytest.mark.parametrize(("case", "rank"), [("killed", 1), ("first killed", 0)])
def test_a_killed_rank_ends_the_other(pairs: dict[str, Pair], case: str, rank: int) -> None:
    pairs[case].signal(rank, signal.SIGKILL)
    code, said = pairs[case].end_of(1 - rank)
    assert code == 76
    assert re.search(
        rf"^error: rank {1 - rank} lost another rank at step \d+, waiting for the gradients of all ranks: ",
        said,
        re.M,
    )
    # rank 0 kept the store by which the ranks know of each other
    who = "rank 1 does not answer any more, last seen at step" if rank == 1 else "look at the first machine"
    assert who in said and "the same command goes on from the latest checkpoint" in said


@pytest.mark.slow
def test_a_stopped_rank_ends_the_other_after_the_timeout(pairs: dict[str, Pair]) -> None:
    pair = pairs["stopped"]
    pair.signal(1, signal.SIGSTOP)
    code, said = pair.end_of(0)
    assert code == 76
    sentence = r"^error: rank 0 made no progress for 0:00:02 h \(parallel.timeout_minutes\), at step \d+, waiting for the"
    assert re.search(sentence, said, re.M)
    assert "rank 1 does not answer any more" in said
    assert "watchdog_worker.py" in said  # the stacks
    log = (pair.folder / "log0").read_text()
    assert "made no progress" in log and "watchdog_worker.py" in log


@pytest.mark.slow
def test_a_broken_rank_is_named_with_its_own_error(pairs: dict[str, Pair]) -> None:
    assert pairs["broken"].end_of(1)[0] == 2
    code, said = pairs["broken"].end_of(0)
    assert code == 76
    assert "rank 1 ended at step 30, reading its pairs: DataError: its pair 5 is broken" in said


def test_who_is_looked_at() -> None:
    waiting, behind = Note(9, "waiting", 4), Note(8, "reading its pairs", 4)
    assert "all other ranks are alive; rank 2 is at step 8, reading its pairs" in describe(
        {1: waiting, 2: behind}, {1: Note(9, "waiting", 7), 2: Note(8, "reading its pairs", 7)}
    )
    # a rank that ended since another did is not to blame
    said = describe({1: waiting, 2: waiting}, {1: Note(9, "waiting", 5, LOST), 2: waiting})
    assert "rank 2 does not answer" in said and "rank 1" not in said
    many = {rank: Note(9, "waiting", 5, "DataError: x") for rank in range(1, 9)}
    assert describe({}, many).endswith("; and 5 more")


class SlowStore(dist.HashStore):
    """A store that takes its time over a beat, as one across a network may."""

    def __init__(self) -> None:
        super().__init__()
        self.under_way = threading.Event()

    def set(self, key: str, value: str) -> None:
        if threading.current_thread() is not threading.main_thread():
            self.under_way.set()
            time.sleep(0.3)
        super().set(key, value)


def test_a_beat_that_is_under_way_does_not_outlive_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """The others read why this rank ended, and no alarm is left that would end a process that goes on."""
    store, alarms = SlowStore(), list[str]()
    monkeypatch.setattr(watchdog, "_own_connection", lambda: store)
    monkeypatch.setattr(faulthandler, "dump_traceback_later", lambda *_, **__: alarms.append("set"))
    monkeypatch.setattr(faulthandler, "cancel_dump_traceback_later", lambda: alarms.append("taken back"))
    ranks = Ranks(rank=0, world_size=2, local_rank=0, device=torch.device("cpu"))
    with Watchdog(ranks, timedelta(minutes=1), beat_seconds=0.01):
        assert store.under_way.wait(10)
    time.sleep(0.5)
    assert json.loads(store.get("cn_clip/0/0"))["ended"] == ""
    assert alarms[-1] == "taken back"
