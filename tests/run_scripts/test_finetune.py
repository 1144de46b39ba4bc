"""A recipe's script for real, with tiny towers and data of the recipe's layout."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.run_scripts.conftest import SCRIPT, TINY

Bash = Callable[..., subprocess.CompletedProcess[str]]


@pytest.mark.slow
@pytest.mark.parametrize("ranks", ["auto", "2"])
def test_a_recipe_trains_and_a_requeued_job_goes_on(ranks: str, bash: Bash, datapath: Path) -> None:
    run_dir = datapath / "experiments" / "muge_finetune_vit-b-16_roberta-base_bs128_8gpu_flip"
    done = bash(SCRIPT, str(datapath), *TINY, "--max-epochs=1", GPUS_PER_NODE=ranks)
    assert done.returncode == 0, done.stderr[-3000:]
    assert (run_dir / "checkpoints" / "epoch1.pt").exists()
    again = bash(SCRIPT, str(datapath), *TINY, "--max-epochs=2", GPUS_PER_NODE=ranks)
    assert again.returncode == 0, again.stderr[-3000:]
    assert "=> loaded checkpoint" in again.stderr
    assert (run_dir / "checkpoints" / "epoch2.pt").exists()
    steps = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    num_steps = 8 if ranks == "auto" else 4
    assert [row["step"] for row in steps if row["kind"] == "train"] == list(range(1, num_steps + 1))


@pytest.mark.slow
def test_a_recipe_without_its_weights_says_which_file_is_missing(bash: Bash, datapath: Path) -> None:
    done = bash(SCRIPT, str(datapath), GPUS_PER_NODE="1")
    assert done.returncode == 2
    (sentence,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert "pretrained_weights/clip_cn_vit-b-16.pt" in sentence
    assert not (datapath / "experiments").exists() or not list((datapath / "experiments").rglob("*.pt"))
