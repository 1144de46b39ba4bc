"""A run that is killed at any moment, also while it writes a checkpoint, ends as one that was not, to the bit.

Real processes and real signals; dropout, FLIP masks, augmentation and an average of the weights are on. Five kills here, thirty
with `bash tests/run.sh --all`.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from cn_clip.data.store import SplitWriter
from cn_clip.parallel.sharded_files import consolidate
from cn_clip.training.checkpoints import read_saved
from cn_clip.training.run_dir import RunDir
from cn_clip.training.step_log import MEASURED
from tests.training.conftest import png

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[2]
NUM_PAIRS = 43
PATIENCE_SECONDS = 120
WORDS = (
    "--vision-model=tiny-vit", "--text-model=tiny-bert", "--warmup=3", "--log-interval=1", "--num-workers=0",
    "--valid-num-workers=0", "--precision=fp32", "--mask-ratio=0.5", "--use-augment", "--save-step-frequency=1",
    "--valid-batch-size=7", "--valid-step-interval=5", "--set=ema.decay=0.9", "--set=checkpoint.keep_last=3",
    "--set=checkpoint.best=mean_recall", "--set=log.tensorboard=false", "--set=log.summary=false",
)  # fmt: skip


class Server:
    """Runs of one folder, started by `run_server.py`."""

    def __init__(self, folder: Path, data: Path) -> None:
        self.folder, self._data = folder, data
        self._process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("run_server.py"))],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        self._alive: set[int] = set()

    def words(self, name: str, *words: str, ranks: int = 1) -> list[str]:
        """Flags of a run; 8 pairs a step, however many ranks."""
        cut = ("--batch-size=4", f"--accum-freq={2 // ranks}")
        places = (
            f"--train-data={self._data}",
            f"--val-data={self._data}",
            f"--logs={self.folder}",
            f"--name={name}",
        )
        return [*WORDS, *cut, *places, *words]

    def start(self, name: str, *words: str, ranks: int = 1, **environment: str) -> list[int]:
        """Process ids of a run's ranks."""
        meeting = {}
        if ranks > 1:
            with socket.socket() as probe:
                probe.bind(("", 0))
                meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(probe.getsockname()[1])}
        started = []
        for rank in range(ranks):
            own = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(ranks)} if ranks > 1 else {}
            log = self.folder / f"{name}.{rank}.txt"
            request = {"words": self.words(name, *words, ranks=ranks), "log": str(log)}
            started.append(self._ask({**request, "environment": {**meeting, **own, **environment}}))
        self._alive |= set(started)
        return started

    def end(self, processes: list[int]) -> list[int]:
        """Their exit codes, negative for signals."""
        codes = [self._ask({"wait": process}) for process in processes]
        self._alive -= set(processes)
        return codes

    def run(self, name: str, *words: str, ranks: int = 1) -> Path:
        """A whole run; its folder."""
        codes = self.end(self.start(name, *words, ranks=ranks))
        assert codes == [0] * ranks, self.said(name)
        return self.folder / name

    def said(self, name: str) -> str:
        return "".join(path.read_text() for path in sorted(self.folder.glob(f"{name}.*.txt")))[-4000:]

    def stop(self) -> None:
        for process in self._alive:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        self._process.kill()
        self._process.communicate()

    def _ask(self, request: dict[str, Any]) -> int:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return int(json.loads(self._process.stdout.readline()))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    data = tmp_path_factory.mktemp("lmdb") / "train"
    with SplitWriter(data) as writer:
        for number in range(NUM_PAIRS):
            writer.add_image(number, png(number))
            writer.add_pair(number, number, f"第{number}张图")
    found = Server(tmp_path_factory.mktemp("runs"), data)
    yield found
    found.stop()


@pytest.fixture(scope="module")
def whole(server: Server) -> Callable[..., Path]:
    """The run of these words that nobody interrupts."""
    found: dict[tuple[str | int, ...], Path] = {}

    def run(*words: str, ranks: int = 1) -> Path:
        key = (*words, ranks)
        if key not in found:
            found[key] = server.run(f"whole{len(found)}", *words, ranks=ranks)
        return found[key]

    return run


def rows(run: Path) -> list[dict[str, Any]]:
    """Of `metrics.jsonl`, times excepted; a half-written last one is none."""
    found = []
    with contextlib.suppress(FileNotFoundError, ValueError):
        for line in (run / "metrics.jsonl").read_text().splitlines():
            found.append({name: value for name, value in json.loads(line).items() if name not in MEASURED})
    return found


def is_over(process: int) -> bool:
    """Whether a process has ended, and only waits to be asked for its code."""
    return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] == "Z"


def await_rows(run: Path, count: int, processes: list[int]) -> None:
    """Until the run has trained so many steps."""
    until = time.monotonic() + PATIENCE_SECONDS
    while sum(row["kind"] == "train" for row in rows(run)) < count:
        assert time.monotonic() < until and not any(map(is_over, processes)), f"{run} does not get on"
        time.sleep(0.002)


def await_writing(run: Path, process: int) -> None:
    """Until this process is writing a checkpoint; a folder of shards of before was removed when it began."""
    until = time.monotonic() + PATIENCE_SECONDS
    endings = (f".{process}.partial", ".sharded.partial")
    while not any(path.name.endswith(endings) for path in (run / "checkpoints").glob(".*")):
        assert time.monotonic() < until and not is_over(process), f"{run} writes nothing"


def kill(
    server: Server, name: str, *words: str, steps: int, while_writing: bool, wait: float, ranks: int = 1
) -> int:
    """Start or continue a run and kill all its ranks after so many more steps; returns the steps of its metrics then."""
    run = server.folder / name
    before = steps_of_latest(run)
    processes = server.start(name, *words, ranks=ranks)
    await_rows(run, before + steps, processes)
    if while_writing:
        await_writing(run, processes[0])
    time.sleep(wait)
    for process in processes:
        os.kill(process, signal.SIGKILL)
    assert server.end(processes) == [-signal.SIGKILL] * ranks, server.said(name)
    return len(rows(run))


def steps_of_latest(run: Path) -> int:
    latest = RunDir(str(run.parent), run.name, writes=False).latest_checkpoint
    return read_saved(latest).position.step if latest.exists() else 0


def contents(run: Path) -> dict[str, Any]:
    """Everything in the run's checkpoints, but its name and settings."""
    return {path.name: content(path) for path in (run / "checkpoints").iterdir()}


def content(path: Path) -> dict[str, Any]:
    if path.is_dir():
        found = consolidate(path)
        found.update(found.pop("facts"))
    else:
        found = torch.load(path, weights_only=True)
    ours = {name: value for name, value in found.pop("cn_clip").items() if name not in ("settings", "token")}
    return {name: value for name, value in found.items() if name != "name"} | ours


def assert_same(one: Any, other: Any, where: str = "", *, close: bool = False) -> None:
    """Equal to the bit, or nearly so; the place of a difference is named."""
    if isinstance(one, torch.Tensor):
        assert one.dtype == other.dtype and one.shape == other.shape, where
        if close:
            torch.testing.assert_close(one, other, rtol=1e-3, atol=2e-5, msg=lambda said: f"{where}: {said}")
        else:
            assert torch.equal(one, other), where
    elif isinstance(one, dict):
        assert one.keys() == other.keys(), where
        for name in one:
            assert_same(one[name], other[name], f"{where}/{name}", close=close)
    elif isinstance(one, list | tuple):
        assert len(one) == len(other), where
        for number, (a, b) in enumerate(zip(one, other, strict=True)):
            assert_same(a, b, f"{where}/{number}", close=close)
    elif close and isinstance(one, float):
        assert one == pytest.approx(other, rel=1e-3, abs=1e-4), where
    else:
        assert one == other, where


SHARDED = ("--set=parallel.engine=fsdp", "--set=checkpoint.sharded=true")


@pytest.mark.parametrize(
    ("num_kills", "num_steps", "ranks", "words"),
    [
        (5, 24, 1, ()),
        (2, 10, 2, SHARDED),
        pytest.param(30, 120, 1, (), marks=pytest.mark.exhaustive),
        pytest.param(10, 40, 2, (), marks=pytest.mark.exhaustive),
        pytest.param(10, 40, 2, SHARDED, marks=pytest.mark.exhaustive),
    ],
)
def test_killed_and_continued_is_as_if_nothing_had_happened(
    server: Server,
    whole: Callable[..., Path],
    num_kills: int,
    num_steps: int,
    ranks: int,
    words: tuple[str, ...],
) -> None:
    words, chance = (f"--max-steps={num_steps}", *words), random.Random(num_kills)
    uninterrupted = whole(*words, ranks=ranks)
    name = f"killed{num_kills}_{ranks}_{len(words)}"
    for number in range(num_kills):
        left = num_steps - steps_of_latest(server.folder / name)
        kill(
            server, name, *words, ranks=ranks,
            # further on by so many that the run has not ended before the last kill
            steps=chance.randint(0, max(0, left // (num_kills + 1 - number) * 3 // 2)),
            # every other one while a checkpoint is being written, which takes some milliseconds
            while_writing=number % 2 == 0,
            wait=chance.uniform(0, 0.005 if number % 2 == 0 else 0.1),
        )  # fmt: skip
    killed = server.run(name, *words, ranks=ranks)
    assert_same(contents(killed), contents(uninterrupted))
    assert rows(killed) == rows(uninterrupted) and len(rows(killed)) > num_steps


def test_another_number_of_ranks_goes_on_with_the_same_pairs(
    server: Server, whole: Callable[..., Path]
) -> None:
    """2, then 1, then 2 ranks again; every step's loss tells that its pairs, dropout and masks were those of 2 ranks."""
    words = ("--max-steps=12",)
    uninterrupted = whole(*words, ranks=2)
    for ranks in (2, 1):
        kill(server, "changing", *words, steps=4, while_writing=False, wait=0.02, ranks=ranks)
    changed = server.run("changing", *words, ranks=2)
    # the loss of a validation is that inside each rank's batches
    one, other = ([row for row in rows(run) if row["kind"] == "train"] for run in (changed, uninterrupted))
    assert_same(one, other, close=True)
    assert_same(contents(changed)["epoch_latest.pt"], contents(uninterrupted)["epoch_latest.pt"], close=True)
    assert "meets other pairs" not in server.said("changing")


@pytest.mark.parametrize(("ranks", "number"), [(1, signal.SIGTERM), (2, signal.SIGUSR1)])
def test_a_signal_saves_ends_with_75_and_nothing_is_lost(
    server: Server, whole: Callable[..., Path], tmp_path: Path, ranks: int, number: signal.Signals
) -> None:
    words = ("--max-steps=12", "--save-step-frequency=0")
    name, marker = f"stopped{ranks}", tmp_path / "code"
    processes = server.start(name, *words, ranks=ranks, CN_CLIP_EXIT_MARKER=str(marker))
    await_rows(server.folder / name, 3, processes)
    os.kill(processes[-1], number)  # one rank only: all must stop after the same step
    assert server.end(processes) == [75] * ranks, server.said(name)
    assert marker.read_text() == "75"
    assert f"saved in {server.folder / name / 'checkpoints' / 'epoch_latest.pt'}" in server.said(name)
    steps = [row["step"] for row in rows(server.folder / name) if row["kind"] == "train"]
    assert 3 <= steps_of_latest(server.folder / name) == steps[-1] < 12
    stopped, uninterrupted = server.run(name, *words, ranks=ranks), whole(*words, ranks=ranks)
    assert_same(contents(stopped), contents(uninterrupted))
    assert rows(stopped) == rows(uninterrupted)


def test_torchrun_hands_its_signal_on_and_nothing_is_lost(
    server: Server, whole: Callable[..., Path], tmp_path: Path
) -> None:
    """It signals the whole group of each rank, loader processes too, and ends with another code than they."""
    words = ("--max-steps=12", "--save-step-frequency=0")
    marker, run = tmp_path / "code", server.folder / "torchrun"
    started = subprocess.Popen(
        [
            sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "--",
            str(ROOT / "cn_clip" / "training" / "main.py"),
            *server.words("torchrun", *words, ranks=2), "--num-workers=1", "--valid-num-workers=1",
        ],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CN_CLIP_EXIT_MARKER": str(marker)},
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        await_rows(run, 3, [started.pid])
        started.terminate()
        said = started.communicate(timeout=PATIENCE_SECONDS)[1]
    finally:
        started.kill()
    assert started.returncode != 0 and marker.read_text() == "75", said
    assert "stopped by SIGTERM" in said and "died" not in said
    assert_same(contents(server.run("torchrun", *words, ranks=2)), contents(whole(*words, ranks=2)))
