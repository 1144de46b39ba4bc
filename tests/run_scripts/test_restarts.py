"""A training process that is killed: the launcher's restart and torchrun's own go on from the latest checkpoint."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch

from tests.run_scripts.conftest import (
    FLAGS,
    ROOT,
    SCRIPT,
    Background,
    assert_same_weights,
    pids_with,
    wait_for_checkpoint,
)

BY_LAUNCHER = ["bash", SCRIPT]
BY_TORCHRUN = [
    *(
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc_per_node=2",
        "--max-restarts=1",
    ),
    *("--", f"{ROOT}/cn_clip/training/main.py"),
    *("--config", f"{ROOT}/configs/muge_finetune_vit-b-16_rbt-base_flip.yaml"),
]


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="finds the process in /proc")
@pytest.mark.parametrize("by", ["launcher", "torchrun"])
def test_a_killed_process_starts_again_from_the_latest_checkpoint(
    by: str,
    datapath: Path,
    tmp_path: Path,
    background: Background,
    uninterrupted: Mapping[str, torch.Tensor],
) -> None:
    words = [*BY_LAUNCHER, str(datapath), *FLAGS] if by == "launcher" else [*BY_TORCHRUN, *FLAGS]
    log = tmp_path / "log"
    run = background(*words, log=log, GPUS_PER_NODE="2", MAX_RESTARTS="1", DATAPATH=str(datapath))
    wait_for_checkpoint(datapath, 4, run)
    (rank_one,) = pids_with("RANK=1", "LOCAL_RANK=1", f"DATAPATH={datapath}")
    wait_for_checkpoint(datapath, 8, run)
    os.kill(rank_one, signal.SIGKILL)
    assert run.wait(timeout=120) == 0, log.read_text()[-3000:]
    assert "=> loaded checkpoint" in log.read_text()
    assert ("restart 1 of 1" in log.read_text()) == (by == "launcher")
    assert_same_weights(datapath, uninterrupted)
