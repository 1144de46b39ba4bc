"""Memory of real steps of one rank: what is measured, JSON of a list of settings, output file.

`allocated`: what torch's allocator handed out at most (its profiler). `grown`: by how much the process grew (Linux; the first
settings only, since a process keeps what it once had).
"""

from __future__ import annotations

import gc
import json
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch.profiler import ProfilerActivity, profile

from cn_clip.config.schema import TrainConfig
from cn_clip.errors import run_door
from cn_clip.parallel.ranks import Ranks, start_ranks
from cn_clip.training.build import build_config
from cn_clip.training.diagnosis.memory import predict
from cn_clip.training.diagnosis.step_rate import batches_of
from cn_clip.training.diagnosis.trial import trial_task

STEPS = 3


def main(what: str, settings: str, output: str) -> None:
    torch.set_num_threads(1)
    measured = {"allocated": allocated, "grown": grown}[what]
    with start_ranks("cpu") as ranks:
        found = []
        for plain in json.loads(settings):
            config = build_config(plain)
            prediction = predict(config, ranks.world_size, "cpu")
            found.append(
                {
                    "total": prediction.total,
                    "tensors": prediction.tensors,
                    "measured": measured(config, ranks),
                }
            )
            gc.collect()
        if ranks.is_main:
            Path(output).write_text(json.dumps(found))


def train(config: TrainConfig, ranks: Ranks) -> None:
    task = trial_task(config, ranks)
    batches = batches_of(task.module, config, ranks, None)
    for step in range(1, STEPS + 1):
        task.engine.zero_grad()
        task.accumulate_gradients(batches, step)
        task.engine.step(None)


def allocated(config: TrainConfig, ranks: Ranks) -> int:
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as told:
        train(config, ranks)
    with TemporaryDirectory() as folder:
        trace = Path(folder, "trace.json")
        told.export_chrome_trace(str(trace))
        events = [e for e in json.loads(trace.read_text())["traceEvents"] if e["name"] == "[memory]"]
    events.sort(key=lambda event: event["ts"])
    before = events[0]["args"]["Total Allocated"] - events[0]["args"]["Bytes"]
    return max(event["args"]["Total Allocated"] for event in events) - before


def grown(config: TrainConfig, ranks: Ranks) -> int:
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark begins anew
    train(config, ranks)
    return resident("VmHWM") - before


def resident(name: str) -> int:
    """Bytes of this process in memory, now (VmRSS) or at most (VmHWM)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise AssertionError(f"/proc has no {name}")


if __name__ == "__main__":
    run_door(lambda: main(*sys.argv[1:]))
