"""Signals, exit codes and restarts of the launcher, under the real torchrun with a small script in the place of training."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.run_scripts.conftest import LAUNCH, ROOT, clean_environment, pids_with

TRAINING = """
import os, signal, sys, time
from pathlib import Path
folder, rank = Path(os.environ["FACTS"]), os.environ.get("RANK", "alone")
restart, deed = os.environ.get("CN_CLIP_RESTART", "none"), os.environ.get("DEED", "train")
stopped = []
def note(word):
    (folder / f"{word}.{rank}.{restart}").write_text(str(os.getpid()))
def end(code):
    note(f"ended{code}")
    if os.environ.get("LOCAL_RANK", "0") == "0" and "CN_CLIP_EXIT_MARKER" in os.environ:
        Path(os.environ["CN_CLIP_EXIT_MARKER"]).write_text(str(code))
    os._exit(code)
note("began")
if deed == "import":
    time.sleep(3)
for taken in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
    signal.signal(taken, lambda number, frame: stopped.append(number))
note("ready")
if deed == "mistake":
    end(2)
if deed == "die once":
    if restart == "0":
        time.sleep(0.5)
        while rank == "0" and not stopped:
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGKILL)
    sys.exit()
while not stopped:
    time.sleep(0.05)
time.sleep(float(os.environ.get("SAVE_SECONDS", "0.5")))
end(75)
"""

Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def facts(tmp_path: Path) -> Path:
    folder = tmp_path / "facts"
    folder.mkdir()
    return folder


@pytest.fixture
def start(tmp_path: Path, facts: Path) -> Iterator[Start]:
    """Start the launcher in the background; at the end of the test nothing that it started is left running."""
    script = tmp_path / "main.py"
    script.write_text(TRAINING)
    (tmp_path / "tmp").mkdir()

    def begin(**environment: str) -> subprocess.Popen[str]:
        wanted = {"FACTS": str(facts), "GPUS_PER_NODE": "2", "TMPDIR": str(tmp_path / "tmp")} | environment
        return subprocess.Popen(
            ["bash", "-c", LAUNCH, "launch", str(script)],
            env=clean_environment(wanted),
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    yield begin
    for pid in pids_with(f"FACTS={facts}"):
        os.kill(pid, signal.SIGKILL)


def wait_for(*names: str, within: Path, seconds: float = 60) -> list[int]:
    """Process numbers that stand in these files, once they are all there."""
    deadline = time.monotonic() + seconds
    while not all((within / name).exists() and (within / name).read_text() for name in names):
        assert time.monotonic() < deadline, (names, sorted(os.listdir(within)))
        time.sleep(0.05)
    return [int((within / name).read_text()) for name in names]


def end_of(launcher: subprocess.Popen[str], facts: Path, seconds: float = 60) -> tuple[int, str]:
    """Exit code and stderr; within moments of the end no process of the run is left, and no temporary folder."""
    _, errors = launcher.communicate(timeout=seconds)
    deadline = time.monotonic() + 8
    while left := pids_with(f"FACTS={facts}"):
        assert time.monotonic() < deadline, [command_of(pid) for pid in left]
        time.sleep(0.1)
    assert not list((facts.parent / "tmp").glob("cn_clip.*"))
    return launcher.returncode, errors


def command_of(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""  # gone meanwhile


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[1])


linux = pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="reads /proc")


@linux
@pytest.mark.parametrize("name", ["TERM", "USR1", "INT"])
def test_a_signal_reaches_training_alone_and_its_code_comes_back(
    name: str, start: Start, facts: Path
) -> None:
    launcher = start()
    wait_for("ready.0.0", "ready.1.0", within=facts)
    launcher.send_signal(signal.Signals[f"SIG{name}"])
    code, errors = end_of(launcher, facts)
    assert code == 75
    wait_for("ended75.0.0", "ended75.1.0", within=facts)
    # torchrun did not hear of it: it would kill its workers after 30 s
    assert "death signal" not in errors
    assert errors.splitlines()[-1].startswith("launch: training was told to stop and has saved")


@linux
def test_a_signal_to_every_process_at_once_is_taken_as_one(start: Start, facts: Path) -> None:
    """Slurm sends it to all processes of a step; torchrun would die of SIGUSR1."""
    launcher = start(SAVE_SECONDS="1")
    workers = wait_for("ready.0.0", "ready.1.0", within=facts)
    for pid in [*workers, parent_of(workers[0]), launcher.pid]:
        os.kill(pid, signal.SIGUSR1)
    assert end_of(launcher, facts)[0] == 75


@linux
def test_a_signal_that_comes_while_python_imports_is_not_lost(start: Start, facts: Path) -> None:
    launcher = start(DEED="import")
    wait_for("began.0.0", "began.1.0", within=facts)
    launcher.send_signal(signal.SIGUSR1)
    assert end_of(launcher, facts)[0] == 75


@linux
def test_a_signal_before_there_is_a_run_ends_it_as_a_shell_says(start: Start, facts: Path) -> None:
    """Two machines of which only one is there: torchrun waits."""
    launcher = start(WORKER_CNT="2", MASTER_ADDR="192.0.2.1", RANK="1", MASTER_PORT="8514")
    deadline = time.monotonic() + 30
    while not any(b"torch.distributed.run" in command_of(pid) for pid in pids_with(f"FACTS={facts}")):
        assert time.monotonic() < deadline
    launcher.send_signal(signal.SIGUSR1)
    assert end_of(launcher, facts)[0] == 128 + signal.SIGUSR1
    assert not list(facts.iterdir())


@linux
@pytest.mark.skipif(shutil.which("setpriv") is None, reason="needs setpriv of util-linux")
def test_a_killed_launcher_leaves_no_orphans(start: Start, facts: Path) -> None:
    launcher = start()
    wait_for("ready.0.0", "ready.1.0", within=facts)
    launcher.kill()
    launcher.wait()
    wait_for("ended75.0.0", "ended75.1.0", within=facts)
    deadline = time.monotonic() + 10
    while pids_with(f"FACTS={facts}"):
        assert time.monotonic() < deadline
        time.sleep(0.1)


@linux
def test_a_killed_torchrun_leaves_no_orphans(start: Start, facts: Path) -> None:
    launcher = start()
    workers = wait_for("ready.0.0", "ready.1.0", within=facts)
    os.kill(parent_of(workers[0]), signal.SIGKILL)
    assert end_of(launcher, facts)[0] == 128 + signal.SIGKILL


@linux
@pytest.mark.parametrize("processes", ["1", "2"])
def test_a_run_that_dies_is_started_again(processes: str, start: Start, facts: Path) -> None:
    code, errors = end_of(start(DEED="die once", MAX_RESTARTS="1", GPUS_PER_NODE=processes), facts)
    assert code == 0
    assert "restart 1 of 1" in errors
    last = "alone" if processes == "1" else "1"
    assert sorted(path.name for path in facts.glob(f"ready.{last}.*")) == [
        f"ready.{last}.0",
        f"ready.{last}.1",
    ]


@linux
def test_what_a_person_has_to_mend_is_not_tried_again(start: Start, facts: Path) -> None:
    code, errors = end_of(start(DEED="mistake", MAX_RESTARTS="3"), facts)
    assert code == 2
    assert "restart" not in errors
    assert not list(facts.glob("*.1"))


@linux
@pytest.mark.parametrize("processes", ["1", "2"])
def test_the_cluster_can_have_another_code_for_a_stopped_run(
    processes: str, start: Start, facts: Path
) -> None:
    launcher = start(STOPPED_EXIT_CODE="138", MAX_RESTARTS="5", GPUS_PER_NODE=processes)
    names = ["ready.alone.0"] if processes == "1" else ["ready.0.0", "ready.1.0"]
    wait_for(*names, within=facts)
    launcher.terminate()
    assert end_of(launcher, facts)[0] == 138  # and is not started again


@linux
def test_a_second_ctrl_c_ends_a_run_at_once(start: Start, facts: Path) -> None:
    launcher = start(SAVE_SECONDS="50")
    wait_for("ready.0.0", "ready.1.0", within=facts)
    began = time.monotonic()
    launcher.send_signal(signal.SIGINT)
    time.sleep(0.5)
    launcher.send_signal(signal.SIGINT)
    assert end_of(launcher, facts)[0] == 128 + signal.SIGINT
    assert time.monotonic() - began < 30


def test_the_code_of_a_stopped_run_is_the_same_on_both_sides() -> None:
    from cn_clip.errors import EXIT_PREEMPTED

    assert f"\nSTOPPED={EXIT_PREEMPTED} " in (ROOT / "run_scripts" / "_supervise.sh").read_text()
