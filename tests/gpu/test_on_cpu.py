"""`tests/gpu.sh` on a machine without a GPU: its checks run with tiny towers and hold, and a failure is told."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENT = os.environ | {"PYTHON": sys.executable, "OMP_NUM_THREADS": "1"}
ELSEWHERE = ("zero", "compile")
"""Compile for a minute, and run on the CPU in tests/exactness and tests/parallel."""


def prove(*words: str) -> subprocess.CompletedProcess[str]:
    script = str(ROOT / "tests" / "gpu.sh")
    return subprocess.run(["bash", script, *words], env=ENVIRONMENT, capture_output=True, text=True)


@pytest.mark.slow
def test_every_line_that_can_runs_on_the_cpu(tmp_path: Path) -> None:
    names = prove("--help").stdout.split("some of ")[1].split("\n\n")[0].replace("\n", " ").split(",")
    wanted = [name.strip() for name in names if name.strip() not in ELSEWHERE]
    assert {"overflow", "attention", "resume", "ranks", "fsdp", "loss_memory"} <= set(wanted)
    report = tmp_path / "gpu_report.md"
    done = prove("--device=cpu", f"--only={','.join(wanted)}", f"--report={report}")
    assert done.returncode == 0, done.stdout + done.stderr
    lines = [line for line in done.stdout.splitlines() if not line.startswith("report: ")]
    assert all(line.startswith(("PASS [cpu] ", "SKIP [cpu] ")) for line in lines), done.stdout
    skipped = [line.split("] ")[1].split(":")[0] for line in lines if line.startswith("SKIP")]
    assert set(skipped) <= {"step tf32", "step fp16", "attention=flash"}
    for line in lines:
        assert f"| {line.split('] ')[1].split(': ')[0]} |" in report.read_text()


def test_a_check_that_fails_is_told_and_the_others_still_run(tmp_path: Path) -> None:
    broken = (
        "from gpu import prove\n"
        "def broken(place): raise OSError('no such kernel')\n"
        "prove.CHECKS = {'attention': broken, 'machine': prove.CHECKS['machine']}\n"
        "prove.main()\n"
    )
    report = tmp_path / "report.md"
    done = subprocess.run(
        [sys.executable, "-c", broken, "--device=cpu", f"--report={report}"],
        env=ENVIRONMENT | {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert "FAIL [cpu] attention: OSError: no such kernel\nPASS [cpu] machine: " in done.stdout
    assert "1 PASS, 1 FAIL, 0 SKIP" in report.read_text()


def test_a_check_that_is_not_there_is_refused() -> None:
    done = prove("--only=speed")
    assert done.returncode == 2
    assert "there is no check 'speed'; choose from machine, " in done.stderr
