"""Fixtures of all tests: small thread pools, and the reference package beside ours."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
REFERENCE = ("cn-clip==1.6.0", "six")  # the package does not declare six, which it imports

os.environ.setdefault(
    "OMP_NUM_THREADS", "2"
)  # before torch is imported, here and in the processes tests start
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test may depend on a hub

RunReference = Callable[..., subprocess.CompletedProcess[str]]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--exhaustive", action="store_true", help="also run the tests marked exhaustive")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave the tests marked exhaustive out unless they are asked for."""
    if config.getoption("--exhaustive"):
        return
    left_out = [item for item in items if item.get_closest_marker("exhaustive")]
    items[:] = [item for item in items if item not in left_out]
    config.hook.pytest_deselected(items=left_out)


@pytest.fixture(scope="session")
def reference_dir() -> Path:
    """Folder that holds the reference package, to be put on PYTHONPATH of a subprocess; installed once per checkout."""
    given = os.environ.get("CN_CLIP_REFERENCE_DIR")
    folder = Path(given) if given else ROOT / ".venv" / "reference"
    if not (folder / "cn_clip" / "clip" / "model.py").is_file():
        command = [
            sys.executable,
            "-m",
            "pip",
            "install",
            "--quiet",
            "--no-deps",
            "--target",
            str(folder),
            *REFERENCE,
        ]
        subprocess.run(command, check=True)
    return folder


@pytest.fixture(scope="session")
def run_reference(reference_dir: Path) -> RunReference:
    """Runs Python code whose `cn_clip` is the reference, with words in `sys.argv[1:]`; fails the test when it fails."""

    def run(code: str, *words: object, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(code), *map(str, words)],
            env={**os.environ, "PYTHONPATH": str(reference_dir), "TRANSFORMERS_VERBOSITY": "error"},
            cwd=cwd or reference_dir,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, f"the reference failed:\n{done.stderr[-4000:]}"
        return done

    return run


@pytest.fixture(scope="session")
def run_ours() -> RunReference:
    """Runs one of our commands by its path, as a user does; returns the finished process, whatever its exit code."""

    def run(door: str, *words: object, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, str(ROOT / door), *map(str, words)],
            env={**os.environ, **environment},
            capture_output=True,
            text=True,
        )

    return run
