"""Memory that runs out halves the micro-batch and repeats the step: the same gradients, on every rank.

The operating system refuses the memory, in real processes.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

WORKER = Path(__file__).with_name("memory_worker.py")
ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="limits a process's memory by its address space")
@pytest.mark.parametrize(
    ("world_size", "short_rank", "accumulate", "headroom_mib"),
    [(1, 0, 1, 64), (1, 0, 2, 64), (2, 1, 1, 56), (2, 1, 2, 52)],
)
def test_a_step_that_does_not_fit_is_repeated_in_smaller_pieces(
    tmp_path: Path, world_size: int, short_rank: int, accumulate: int, headroom_mib: int
) -> None:
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={world_size}", "--"]
    words = [str(WORKER), str(tmp_path / "found.pt"), *map(str, (short_rank, accumulate, headroom_mib))]
    done = subprocess.run(
        [sys.executable, *(torchrun if world_size > 1 else []), *words],
        env={**os.environ, "PYTHONPATH": str(ROOT), "MALLOC_MMAP_THRESHOLD_": "65536"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    enough, short = torch.load(tmp_path / "found.pt", weights_only=True)
    assert enough["pieces"] == 1 and short["pieces"] > 1
    assert "Memory ran out at step 1: micro-batches are cut to" in done.stderr
    assert short["loss"] == pytest.approx(enough["loss"], abs=1e-6)
    for name, gradient in enough["gradients"].items():
        torch.testing.assert_close(short["gradients"][name], gradient, rtol=1e-4, atol=1e-6)
