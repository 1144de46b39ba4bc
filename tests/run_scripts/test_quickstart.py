"""The quickstart with a few training steps: every stage, again, killed half-way, and with other flags."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
STAGES = ["data", "lmdb", "train", "extract", "search", "evaluate", "zeroshot"]

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("quickstart") / "my folder"


def words(folder: Path, *flags: str) -> list[str]:
    small = ["--batch-size=32", "--num-workers=0", "--set", "data.valid=null", *flags]
    return ["bash", f"{ROOT}/run_scripts/quickstart.sh", str(folder), *small]


def environment() -> dict[str, str]:
    return os.environ | {
        "VIRTUAL_ENV": sys.prefix,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }


def run(folder: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(words(folder, *flags), env=environment(), capture_output=True, text=True)


def test_every_stage_runs_and_the_report_stands(folder: Path) -> None:
    done = run(folder, "--max-steps=2")
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    for name in STAGES:
        assert f"\n== {name}\n" in f"\n{done.stdout}"
    assert "zero-shot top-1" in done.stdout
    assert (folder / "report.html").stat().st_size > 10_000
    for name in ("recall_images", "recall_texts"):
        assert json.loads((folder / "results" / f"{name}.json").read_text())["success"] is True


def test_again_it_reuses_all_and_prints_the_table(folder: Path) -> None:
    before = (folder / "run" / "checkpoints" / "epoch_latest.pt").stat().st_mtime_ns
    done = run(folder, "--max-steps=2")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("done before") == len(STAGES)
    assert "zero-shot top-1" in done.stdout
    assert (folder / "run" / "checkpoints" / "epoch_latest.pt").stat().st_mtime_ns == before


def test_killed_in_training_it_continues(folder: Path) -> None:
    """With other flags, so the run of the tests above is not taken for this one."""
    flags = ("--max-steps=12", "--save-step-frequency=2")
    first = subprocess.Popen(
        words(folder, *flags),
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    deadline = time.monotonic() + 300
    while not list((folder / "run" / "checkpoints").glob("epoch_1_4.pt")):
        assert first.poll() is None and time.monotonic() < deadline
        time.sleep(0.2)
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    done = run(folder, *flags)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("done before") == 2  # data and lmdb
    assert "so run is made anew" not in done.stdout
    assert "=> loaded checkpoint" in done.stderr


def test_a_failing_stage_says_so_and_keeps_the_others(folder: Path) -> None:
    done = run(folder, "--max-steps=none")
    assert done.returncode == 2
    assert "error: argument --max-steps: invalid int value: 'none'; see --help" in done.stderr
    assert "== train: failed; mend what it says above and run the same command again" in done.stderr
    assert done.stdout.count("done before") == 2


def test_a_folder_that_cannot_be_made_is_named() -> None:
    done = run(Path("/dev/null/x"))
    assert done.returncode == 2
    assert "error: cannot make the folder /dev/null/x" in done.stderr
