"""Several ranks compute what one process computes, under every engine; and a run under FSDP goes as one alone."""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from pathlib import Path

from cn_clip.parallel.ranks import start_ranks
from cn_clip.training.diagnosis.bandwidth import check_bandwidth, measure_bandwidth
from cn_clip.training.diagnosis.exact_step import check_exact_step
from gpu.outcome import Outcome, passes, skips
from gpu.workplace import Workplace

STEPS = 4
CLOSE = {"cpu": 1e-4, "cuda": 1e-2}
"""Relative difference of losses after some steps that rounding explains; CUDA's convolutions round to TF32."""


def check_ranks(place: Workplace) -> list[Outcome]:
    """Gradients of all ranks together against one process, over nccl on GPUs and gloo on the CPU."""
    return _check_engines(place, "ddp", "fsdp")


def check_zero(place: Workplace) -> list[Outcome]:
    """The same under DeepSpeed, which compiles an operator the first time."""
    if importlib.util.find_spec("deepspeed") is None:
        return [skips("gradient, zero", "deepspeed is not installed")]
    return _check_engines(place, "zero1", "zero2", "zero3")


def _check_engines(place: Workplace, *engines: str) -> list[Outcome]:
    if place.num_gpus == 1:
        return [skips(f"gradient, {', '.join(engines)}", "one GPU: nccl needs two")]
    processes = place.num_gpus or 2
    report = place.folder / "ranks.json"
    place.torchrun(processes, Path(__file__), str(report), place.device.type, *engines)
    found = json.loads(report.read_text())
    lines = [passes(f"gradient, {engine}", held, says) for engine, held, says in found["exact"]]
    return [*lines, passes("network", True, found["network"])]


def check_fsdp_run(place: Workplace) -> list[Outcome]:
    """The trainer on several ranks with parallel.engine=fsdp against one process with the same pairs."""
    if place.num_gpus == 1:
        return [skips("fsdp run", "one GPU: there is nothing to share; run it on two or more")]
    processes = place.num_gpus or 2
    settings = ("train.precision=fp32", f"train.max_steps={STEPS}", "checkpoint.enabled=false")
    each, all_pairs = (
        f"train.batch_size={number}" for number in (16 // processes, 16 // processes * processes)
    )
    alone = [row["loss"] for row in place.train("alone", *settings, all_pairs)]
    shared = [
        row["loss"]
        for row in place.train_on_ranks(processes, "fsdp", *settings, each, "parallel.engine=fsdp")
    ]
    apart = max(abs(a - b) / a for a, b in zip(alone, shared, strict=True))
    says = f"losses of {STEPS} steps on {processes} ranks differ from one process by {apart:.1e} at most"
    return [passes("fsdp run", apart < CLOSE[place.device.type], says)]


def work(report: str, device: str, *engines: str) -> None:
    """In each process: the engines, then the links; the main rank writes what was found."""
    with start_ranks(device) as ranks:
        place = Workplace(ranks.device, is_tiny=True, folder=Path(report).parent)
        exact = []
        for engine in engines:
            finding = check_exact_step(place.config(parallel__engine=engine), ranks)
            exact.append((engine, finding.verdict == "ok", finding.says))
        network = check_bandwidth(measure_bandwidth(ranks, (1 << 16, 1 << 22)), ranks.device.type).says
        if ranks.is_main:
            Path(report).write_text(json.dumps({"exact": exact, "network": network}))


if __name__ == "__main__":
    os.environ.setdefault("DS_ACCELERATOR", sys.argv[2])
    work(*sys.argv[1:])
