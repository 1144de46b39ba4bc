"""How a checkout gets its environment, with a Python that notes what it is asked and installs nothing."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout with setup.py and the environment script only."""
    folder = tmp_path / "check out"
    (folder / "run_scripts").mkdir(parents=True)
    shutil.copy(ROOT / "run_scripts" / "_environment.sh", folder / "run_scripts")
    (folder / "setup.py").write_text("# one\n")
    return folder


@pytest.fixture
def set_up(
    checkout: Path, tmp_path: Path
) -> Callable[..., tuple[subprocess.CompletedProcess[str], list[str]]]:
    """Calls `set_up_environment dev` in an active environment; returns what was said and the pip commands."""
    active, calls = tmp_path / "active", tmp_path / "calls"
    (active / "bin").mkdir(parents=True)
    python = active / "bin" / "python3"
    python.write_text(
        f"#!/bin/bash\n"
        f'case "$*" in\n'
        f'    *pip*) [[ -z $PIP_FAILS ]] && echo "$*" >>{calls} ;;\n'
        f"    *) echo {active} ;;\n"
        f"esac\n"
    )
    python.chmod(0o755)

    def run(pip_fails: str = "") -> tuple[subprocess.CompletedProcess[str], list[str]]:
        calls.write_text("")
        words = f"set -euo pipefail; source '{checkout}/run_scripts/_environment.sh'; set_up_environment dev"
        environment = {
            "VIRTUAL_ENV": str(active),
            "PATH": f"{active}/bin:/usr/bin:/bin",
            "PIP_FAILS": pip_fails,
        }
        done = subprocess.run(["bash", "-c", words], env=environment, capture_output=True, text=True)
        return done, calls.read_text().splitlines()

    return run


def test_it_installs_once_and_again_when_setup_changed(set_up: Callable, checkout: Path) -> None:
    done, calls = set_up()
    assert done.returncode == 0, done.stderr
    assert calls == [f"-m pip install --quiet --disable-pip-version-check -e {checkout}[dev]"]
    assert set_up()[1] == []
    (checkout / "setup.py").write_text("# two\n")
    assert len(set_up()[1]) == 1


def test_a_failed_installation_is_said_and_tried_again(set_up: Callable) -> None:
    done, _ = set_up(pip_fails="yes")
    assert done.returncode == 2
    assert (
        done.stderr
        == "error: pip could not install the package: read its message above, mend that and run this again\n"
    )
    assert len(set_up()[1]) == 1


def test_python_is_the_active_one_then_that_of_the_checkout(checkout: Path, tmp_path: Path) -> None:
    def found(**environment: str) -> str:
        words = f"source '{checkout}/run_scripts/_environment.sh'; find_python"
        done = subprocess.run(
            ["bash", "-c", words], env={"PATH": "/usr/bin:/bin"} | environment, capture_output=True, text=True
        )
        return done.stdout.strip()

    own = checkout / ".venv" / "bin" / "python"
    own.parent.mkdir(parents=True)
    own.symlink_to(sys.executable)
    assert found() == str(own)
    assert found(PYTHON="/some/python") == "/some/python"
    active = tmp_path / "active" / "bin"
    active.mkdir(parents=True)
    (active / "python3").symlink_to(sys.executable)
    assert found(VIRTUAL_ENV=str(active.parent), PATH=f"{active}:/usr/bin:/bin") == str(active / "python3")
