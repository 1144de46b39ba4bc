"""Parameter gradients meet once a step, however many micro-batches it has (the reference reduces them each time)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

WORKER = Path(__file__).with_name("synchronisation_worker.py")
ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("accumulate", [1, 4])
def test_every_gradient_is_reduced_once_a_step(accumulate: int, tmp_path: Path) -> None:
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "--"]
    done = subprocess.run(
        [*torchrun, str(WORKER), str(tmp_path / "met.json"), str(accumulate)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads((tmp_path / "met.json").read_text()) == [1.0, 1.0, 1.0]
