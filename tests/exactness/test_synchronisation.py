"""Parameter gradients meet once a step, however many micro-batches it has (the reference reduces them each time).

Counted by torch's profiler in real processes, DDP's C++ reducer included; how many bytes that makes beside open_clip and the
reference is told by tests/benchmarks/collectives.py.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

WORKER = Path(__file__).with_name("synchronisation_worker.py")
ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.slow  # processes, each importing torch

PLAIN = {
    "image": "tiny-vit", "frozen": "none", "dropout": 0.1, "mask_ratio": 0.5, "keyed": True, "targets": "diagonal",
    "gather": True, "gradient": "exact", "tile": 4096, "recompute": False, "trim": True, "precision": "fp32",
    "resumed": None,
}  # fmt: skip
STAYS = {"reshard": False}
CASES = tuple(
    {**PLAIN, "engine": engine, "parallel": parallel, "accumulate": accumulate}
    for engine, parallel in (("ddp", {}), ("fsdp", {}), ("fsdp", STAYS), ("zero1", {}))
    for accumulate in (1, 4)
)

Sent = Callable[..., dict[str, float]]


@pytest.fixture(scope="module")
def sent(tmp_path_factory: pytest.TempPathFactory) -> Sent:
    """`sent(engine, accumulate, **parallel)`: kind of collective -> numbers in it, as multiples of the weights."""
    output = tmp_path_factory.mktemp("sent") / "sent.json"
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "--"]
    done = subprocess.run(
        [*torchrun, str(WORKER), json.dumps(CASES), str(output)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = {
        json.dumps(case): kinds for case, kinds in zip(CASES, json.loads(output.read_text()), strict=True)
    }

    def look_up(engine: str, accumulate: int, **parallel: Any) -> dict[str, float]:
        return found[json.dumps({**PLAIN, "engine": engine, "parallel": parallel, "accumulate": accumulate})]

    return look_up


@pytest.mark.parametrize("accumulate", [1, 4])
@pytest.mark.parametrize(
    ("engine", "kind"), [("ddp", "allreduce"), ("zero1", "allreduce"), ("fsdp", "reduce_scatter_base")]
)
def test_every_gradient_is_reduced_once_a_step(sent: Sent, engine: str, kind: str, accumulate: int) -> None:
    # features and numbers are 1 % of these small weights; what is not cut up under FSDP travels in an all-reduce
    assert sent(engine, accumulate)[kind] == pytest.approx(1, abs=0.02)


def test_weights_that_stay_are_gathered_once_a_step(sent: Sent) -> None:
    """FSDP's `reshard: false`; else each pass gathers the blocks again, and what is outside them once."""
    assert sent("fsdp", 4, **STAYS)["allgather_base"] == sent("fsdp", 1, **STAYS)["allgather_base"]
    assert sent("fsdp", 1, **STAYS)["allgather_base"] == pytest.approx(1, abs=0.02)
    assert sent("fsdp", 4)["allgather_base"] > 1.2
