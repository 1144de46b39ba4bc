from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LAUNCH_NAMES = (
    "WORKER_CNT",
    "GPUS_PER_NODE",
    "MASTER_ADDR",
    "MASTER_PORT",
    "RANK",
    "WORLD_SIZE",
    "LOCAL_RANK",
    "PYTHON",
    "MAX_RESTARTS",
    "STOPPED_EXIT_CODE",
)
DEFAULTS = (
    'set -euo pipefail; : "${WORKER_CNT:=1}" "${GPUS_PER_NODE:=auto}" "${MASTER_ADDR:=localhost}"'
    ' "${MASTER_PORT:=auto}" "${RANK:=0}"'
)
LAUNCH = f'{DEFAULTS}; source {ROOT}/run_scripts/_launch.sh; launch "$@"'
"""`launch SCRIPT [flags]` of _launch.sh with the defaults that stand at the top of every run script."""

Bash = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def bash(tmp_path: Path) -> Bash:
    """Run bash words elsewhere than in the checkout, with only the launch settings given as keywords."""

    def run(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["bash", *words],
            cwd=tmp_path,
            env=clean_environment(environment),
            capture_output=True,
            text=True,
            timeout=300,
        )

    return run


def clean_environment(wanted: Mapping[str, str]) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name not in LAUNCH_NAMES}
    return kept | {"PYTHON": sys.executable, "OMP_NUM_THREADS": "1"} | wanted


@pytest.fixture
def launch(bash: Bash) -> Bash:
    """`launch SCRIPT [flags]`, awaited."""

    def run(script: Path | str, *flags: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return bash("-c", LAUNCH, "launch", str(script), *flags, **environment)

    return run


@pytest.fixture
def echo_python(tmp_path: Path) -> str:
    """A Python that prints one argument a line instead of running them, and 4 as the number of GPUs."""
    path = tmp_path / "echo_python"
    path.write_text(
        f"#!/bin/bash\n"
        f'case "$1 ${{2:-}}" in\n'
        f"    *cuda.device_count*) echo 4 ;;\n"
        f'    "-c "* | "- "*) exec {sys.executable} "$@" ;;\n'
        f'    *) printf "%s\\n" "DATAPATH=${{DATAPATH:-}}" "PYTHONPATH=${{PYTHONPATH:-}}" "$@" ;;\n'
        f"esac\n"
    )
    path.chmod(0o755)
    return str(path)
