"""Memory that runs out halves the micro-batch and repeats the step: the same gradients, on every rank.

The operating system refuses the memory, in real processes.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

WORKER = Path(__file__).with_name("memory_worker.py")
ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="limits a process's memory by its address space")
@pytest.mark.parametrize(
    ("world_size", "short_rank", "accumulate"), [(1, 0, 1), (1, 0, 2), (2, 1, 1), (2, 1, 2)]
)
def test_a_step_that_does_not_fit_is_repeated_in_smaller_pieces(
    tmp_path: Path, world_size: int, short_rank: int, accumulate: int
) -> None:
    for headroom_mib in (64, 56, 48, 40):  # how much is too little is up to the allocator
        enough, short, log = step(tmp_path / "found.pt", world_size, short_rank, accumulate, headroom_mib)
        assert enough["pieces"] == 1
        if short["pieces"] > 1:
            break
    assert short["pieces"] > 1 and "Memory ran out at step 1: micro-batches are cut to" in log
    assert short["loss"] == pytest.approx(enough["loss"], abs=1e-6)
    for name, gradient in enough["gradients"].items():
        difference = (short["gradients"][name] - gradient).norm()
        assert difference <= 1e-5 * gradient.norm() + 1e-6, (
            name
        )  # by the whole: single ones may be all rounding


def step(
    output: Path, world_size: int, *words: int
) -> tuple[dict[str, Any], dict[str, Any], str]:  # Any: what the worker saves
    """With enough memory, with less, and what was logged."""
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={world_size}", "--"]
    done = subprocess.run(
        [
            sys.executable,
            *(torchrun if world_size > 1 else []),
            str(WORKER),
            str(output),
            *map(str, words),
        ],
        env={**os.environ, "PYTHONPATH": str(ROOT), "MALLOC_MMAP_THRESHOLD_": "65536"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    enough, short = torch.load(output, weights_only=True)
    return enough, short, done.stderr
