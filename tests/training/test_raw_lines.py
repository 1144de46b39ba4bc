"""Command lines that start the training door without the run scripts, as people have them in their own."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
DOOR = ROOT / "cn_clip" / "training" / "main.py"
LAUNCHERS = {
    "run": ["torch.distributed.run", "--standalone"],
    "launch": ["torch.distributed.launch", "--use_env", "--rdzv-backend=c10d", "--rdzv-endpoint=localhost:0"],
}
"""What torchrun is, and the older line of the reference's scripts; both find a free port."""


def start(launcher: str, num_processes: int, *words: object) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-m", *LAUNCHERS[launcher], f"--nproc_per_node={num_processes}", "--", str(DOOR)]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run(
        [*line, *map(str, words)], env={**environment, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True
    )


def test_two_processes_train_and_each_tells_its_validation(tiny_split: Path, tmp_path: Path) -> None:
    done = start(
        "run", 2, f"--train-data={tiny_split}", f"--val-data={tiny_split}", f"--logs={tmp_path}", "--name=two",
        "--vision-model=tiny-vit", "--text-model=tiny-bert", "--batch-size=4", "--valid-batch-size=4",
        "--max-steps=2", "--log-interval=1", "--num-workers=0", "--valid-num-workers=0", "--precision=fp32",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    lines = done.stderr.splitlines()
    results = {
        rank: [line for line in lines if f"| Rank {rank} | Validation Result" in line] for rank in (0, 1)
    }
    assert len(results[0]) == len(results[1]) == 1
    assert results[0][0].partition("Rank 0")[2] == results[1][0].partition("Rank 1")[2]
    assert sum("Global Steps" in line for line in lines) == 2  # of the main rank only
    assert not any(re.search(r"Rank 1 \|   batch_size", line) for line in lines)
    (log,) = (tmp_path / "two").glob("out_*.log")
    assert "Rank 1" not in log.read_text(encoding="utf-8")


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_what_is_wrong_is_one_sentence_beneath_a_launcher(launcher: str, tmp_path: Path) -> None:
    done = start(launcher, 1, "--train-data=/no/such/folder", f"--logs={tmp_path}", "--vision-model=tiny-vit")
    assert done.returncode != 0
    assert done.stderr.count("error: /no/such/folder is not a folder") == 1
    assert f'File "{DOOR}"' not in done.stderr  # the launcher's own traceback, none of ours
