"""Seconds of an optimizer step in each number type, and under torch.compile."""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace

import torch

from cn_clip.errors import DeviceError
from gpu.outcome import Outcome, passes, skips
from gpu.workplace import Workplace

CASES: Mapping[str, Mapping[str, object]] = {
    "fp32": {"train__precision": "fp32"},
    "tf32": {"train__precision": "fp32"},
    "amp_bf16": {"train__precision": "amp_bf16"},
    "amp": {"train__precision": "amp"},
    "bf16": {"train__precision": "bf16"},
    "fp16": {"train__precision": "fp16", "optim__lr": 0.0},
    "amp_bf16, recompute": {"train__precision": "amp_bf16", "model__recompute": True},
    "amp_bf16, channels last": {"train__precision": "amp_bf16", "model__channels_last": True},
}
"""Settings by name. Weights in fp16 have no fp32 copy to move: their step is timed with a learning rate of 0."""
COMPILED = {"train__precision": "amp_bf16", "model__compile": True}
HEADS = ["case", "step, ms", "pairs a second", "memory, MiB"]


def check_step_time(place: Workplace) -> list[Outcome]:
    """One outcome for each case; the table of all stands with the last."""
    rows = [HEADS]
    found = [_timed(name, settings, place, rows) for name, settings in CASES.items()]
    return [*found[:-1], replace(found[-1], table=rows)]


def check_compile(place: Workplace) -> list[Outcome]:
    """The same under torch.compile, whose first step takes minutes with real towers."""
    if not place.is_cuda and shutil.which("g++") is None:
        return [skips("step compile", "torch.compile needs g++ on the CPU")]
    rows = [HEADS]
    return [replace(_timed("compile", COMPILED, place, rows), table=rows)]


def _timed(name: str, settings: Mapping[str, object], place: Workplace, rows: list[list[str]]) -> Outcome:
    check = f"step {name}"
    if name == "tf32" and not place.is_cuda:
        return skips(check, "TF32 is a mode of CUDA's matrix products")
    config = place.config(**settings)
    if place.is_cuda:
        torch.cuda.reset_peak_memory_stats(place.device)
    try:
        with _matrix_products_in("tf32" if name == "tf32" else "ieee"):
            seconds, norm = place.step_seconds(config)
    except DeviceError as error:
        return skips(check, str(error))
    pairs = config.train.batch_size / seconds
    memory = f"{torch.cuda.max_memory_allocated(place.device) / 2**20:.0f}" if place.is_cuda else "-"
    rows.append([name, f"{seconds * 1000:.1f}", f"{pairs:.0f}", memory])
    says = f"{seconds * 1000:.1f} ms, {pairs:.0f} pairs a second, gradient norm {norm:.3g}"
    return passes(check, math.isfinite(norm) or name == "fp16", says)


@contextmanager
def _matrix_products_in(kind: str) -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if kind == "tf32" else "highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
