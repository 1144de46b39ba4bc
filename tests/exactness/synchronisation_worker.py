"""One rank of steps whose messages are counted, for many cases: JSON of the cases, output file.

Started by torchrun; the folder of this file is on `sys.path`.
"""

from __future__ import annotations

import json
import math
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from gradients_worker import build_case, own_blocks
from torch.profiler import ProfilerActivity, profile

from cn_clip.errors import run_door
from cn_clip.parallel.ranks import Ranks, start_ranks

STEPS = 3
"""The last one is counted: in the first two, libraries agree on buckets and order."""


def values_sent(case: dict[str, Any], ranks: Ranks) -> dict[str, float]:
    """Numbers in the largest tensor of each collective of one step, summed by kind, as multiples of the weights."""
    task, engine = build_case(case, ranks)
    num_weights = sum(shape.numel() for shape in engine.shapes().values())
    batches = own_blocks(case, ranks)
    for step in range(1, STEPS):
        one_step(task, engine, batches, step)
    trace = Path(tempfile.mkdtemp()) / "trace.json"
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as recorder:
        one_step(task, engine, batches, STEPS)
    recorder.export_chrome_trace(str(trace))  # the only place where shapes of lists of tensors are told
    sent: Counter[str] = Counter()
    for event in json.loads(trace.read_text())["traceEvents"]:
        if event.get("name", "").startswith("c10d::"):
            sizes = [size for dims in event["args"]["Input Dims"] for size in _sizes(dims)]
            sent[event["name"].removeprefix("c10d::").strip("_")] += max(sizes, default=0)
    return {kind: number / num_weights for kind, number in sent.items()}


def one_step(task: Any, engine: Any, batches: Any, step: int) -> None:  # Any: as `build_case` gives them
    engine.zero_grad()
    task.accumulate_gradients(batches, step)
    engine.step(1.0)


def _sizes(dims: list[Any]) -> list[int]:  # Any: numbers, or lists of them for a list of tensors
    if dims and isinstance(dims[0], list):
        return [math.prod(one) for one in dims]
    return [math.prod(dims)] if dims else []


def main(cases: str, output: str) -> None:
    torch.set_num_threads(1)
    with start_ranks("cpu") as ranks:
        found = [values_sent(case, ranks) for case in json.loads(cases)]
        if ranks.is_main:
            Path(output).write_text(json.dumps(found))


if __name__ == "__main__":
    run_door(lambda: main(*sys.argv[1:]))
