from __future__ import annotations

import base64
import contextlib
import io
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

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

TINY = (
    "--vision-model=tiny-vit",
    "--text-model=tiny-bert",
    "--set",
    "model.init_from=null",
    "--batch-size=4",
    "--valid-batch-size=4",
    "--num-workers=0",
    "--valid-num-workers=0",
    "--precision=fp32",
    "--set",
    "log.tensorboard=false",
)
"""Flags for a recipe of tiny towers on the data of `datapath`."""

SCRIPT = f"{ROOT}/run_scripts/muge_finetune_vit-b-16_rbt-base_flip.sh"
STEPS = 40
FLAGS = (
    *TINY,
    "--set",
    f"train.max_steps={STEPS}",
    "--set",
    "checkpoint.every_steps=4",
    "--set",
    "checkpoint.every_epochs=null",
    "--set",
    "data.valid=null",
)
"""Long enough to be interrupted."""

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


@pytest.fixture(scope="session")
def muge(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """DATAPATH with a MUGE of 16 pairs in each split; not to be trained in."""
    datapath = tmp_path_factory.mktemp("muge") / "datapath"
    folder = datapath / "datasets" / "MUGE"
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for split in ("train", "valid"):
        rows, texts = [], []
        for number in range(16):
            png = io.BytesIO()
            Image.fromarray(rng.integers(0, 255, (32, 32, 3), dtype=np.uint8)).save(png, "PNG")
            rows.append(f"{number}\t{base64.b64encode(png.getvalue()).decode()}\n")
            texts.append(
                json.dumps({"text_id": number, "text": f"图片{number}", "image_ids": [number]}) + "\n"
            )
        (folder / f"{split}_imgs.tsv").write_text("".join(rows))
        (folder / f"{split}_texts.jsonl").write_text("".join(texts))
    door = f"{ROOT}/cn_clip/preprocess/build_lmdb_dataset.py"
    subprocess.run(
        [sys.executable, door, "--data_dir", folder, "--splits", "train,valid"],
        check=True,
        capture_output=True,
    )
    return datapath


@pytest.fixture
def datapath(tmp_path: Path, muge: Path) -> Path:
    """One of the test's own."""
    shutil.copytree(muge, tmp_path / "datapath")
    return tmp_path / "datapath"


@pytest.fixture(scope="session")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory, muge: Path) -> Mapping[str, torch.Tensor]:
    """Weights of `FLAGS` in two processes on this machine, from start to end."""
    datapath = tmp_path_factory.mktemp("uninterrupted") / "datapath"
    shutil.copytree(muge, datapath)
    done = subprocess.run(
        ["bash", SCRIPT, str(datapath), *FLAGS],
        env=clean_environment({"GPUS_PER_NODE": "2"}),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return weights(datapath)


def weights(datapath: Path) -> Mapping[str, torch.Tensor]:
    """Of a run of `FLAGS` that has come to its end."""
    checkpoint = torch.load(checkpoints(datapath) / "epoch_latest.pt", weights_only=True)
    assert checkpoint["step"] == STEPS
    state: Mapping[str, torch.Tensor] = checkpoint["state_dict"]
    return state


def checkpoints(datapath: Path) -> Path:
    return datapath / "experiments" / "muge_finetune_vit-b-16_roberta-base_bs128_8gpu_flip" / "checkpoints"


def wait_for_checkpoint(datapath: Path, step: int, *runs: subprocess.Popen[str], seconds: float = 90) -> None:
    """Until the file of this step is there; the runs must still be going."""
    deadline = time.monotonic() + seconds
    while not list(checkpoints(datapath).glob(f"epoch_*_{step}.pt")):
        assert time.monotonic() < deadline and all(run.poll() is None for run in runs), step
        time.sleep(0.02)


def assert_same_weights(datapath: Path, expected: Mapping[str, torch.Tensor]) -> None:
    got = weights(datapath)
    assert list(expected) == list(got)
    for name, tensor in expected.items():
        assert torch.equal(tensor, got[name]), name


Background = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def background(tmp_path: Path) -> Iterator[Background]:
    """Start words that run beside the test and log to a file; nothing of them is left at its end."""
    mark = f"OF_TEST={tmp_path}"

    def start(*words: str, log: Path, **environment: str) -> subprocess.Popen[str]:
        marked = clean_environment(environment) | dict([mark.split("=", 1)])
        with log.open("a") as file:
            return subprocess.Popen(
                words, cwd=ROOT, env=marked, stdout=file, stderr=subprocess.STDOUT, text=True
            )

    yield start
    for pid in pids_with(mark):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def pids_with(*variables: str) -> list[int]:
    """Processes that were started with all of these in their environment."""
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):  # another's, or gone meanwhile
            if set(path.read_bytes().split(b"\0")) >= {variable.encode() for variable in variables}:
                found.append(int(path.parent.name))
    return found


@pytest.fixture
def own_name() -> str:
    """A name of this machine that is not localhost."""
    try:
        socket.getaddrinfo(socket.gethostname(), 8514)
    except OSError:
        pytest.skip("this machine's own name does not resolve")
    return socket.gethostname()


def free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("", 0))
        return str(probe.getsockname()[1])
