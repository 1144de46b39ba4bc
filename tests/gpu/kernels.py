"""Attention kernels: which fit, which torch takes in a real step, and what keyed masks cost."""

from __future__ import annotations

import torch
from torch.profiler import ProfilerActivity, profile

from cn_clip.errors import DeviceError
from cn_clip.training.diagnosis.kernels import check_kernels
from gpu.outcome import Outcome, passes, skips
from gpu.workplace import Workplace, one_step

FUSED = ("flash", "fmha", "cudnn_attention", "efficient_attention", "cudnn_generated_fort_native_sdpa")
"""Parts of names of fused attention kernels, on CUDA and CPU."""
AMPERE = (8, 0)


def check_attention(place: Workplace) -> list[Outcome]:
    """What fits by trial, the switches, and what a step in bf16 really ran."""
    config = place.config(train__precision="amp_bf16")
    findings = check_kernels(config, place.alone)
    ran = _attention_kernels(place)
    switches = {
        "flash": torch.backends.cuda.flash_sdp_enabled(),
        "memory-efficient": torch.backends.cuda.mem_efficient_sdp_enabled(),
        "cudnn": torch.backends.cuda.cudnn_sdp_enabled(),
        "plain": torch.backends.cuda.math_sdp_enabled(),
    }
    rows = [["kernel of a bf16 step", "calls"], *([name, str(calls)] for name, calls in ran.items())]
    says = (
        f"{'; '.join(finding.says for finding in findings)}; switched on: "
        f"{', '.join(name for name, is_on in switches.items() if is_on)}; ran: {', '.join(ran) or 'no fused kernel'}"
    )
    must = place.is_cuda and torch.cuda.get_device_capability(place.device) >= AMPERE
    return [passes("attention", bool(ran) or not must, says, rows), _flash_or_an_error(place)]


def _flash_or_an_error(place: Workplace) -> Outcome:
    """The trainer with model.attention=flash: on a GPU from Ampere on it trains; elsewhere it may say why it does not."""
    settings = ("train.precision=amp_bf16", "model.attention=flash", "train.max_steps=2")
    try:
        rows = place.train("flash", *settings)
    except DeviceError as error:
        if place.is_cuda and torch.cuda.get_device_capability(place.device) >= AMPERE:
            return passes("attention=flash", False, str(error))
        return skips("attention=flash", str(error))
    return passes("attention=flash", len(rows) == 2, f"2 steps, loss {rows[-1]['loss']:.3f}")


def _attention_kernels(place: Workplace) -> dict[str, int]:
    """Fused attention kernels by name, of one step in bf16."""
    task, pairs = place.task(place.config(train__precision="amp_bf16"))
    one_step(task, pairs, 1)
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if place.is_cuda else [])]
    with profile(activities=activities) as watched:
        one_step(task, pairs, 2)
        place.finish()
    counts: dict[str, int] = {}
    for event in watched.key_averages():
        if any(part in event.key.lower() for part in FUSED):
            counts[event.key[:90]] = event.count
    return counts


def check_mask_cost(place: Workplace) -> list[Outcome]:
    """A step whose dropout follows each pair, against one with torch's own dropout."""
    settings = {"train__precision": "amp_bf16", "model__mask_ratio": 0.5}
    keyed, _ = place.step_seconds(place.config(train__randomness="pair", **settings))
    stock, _ = place.step_seconds(place.config(train__randomness="micro_batch", **settings))
    rows = [
        ["train.randomness", "step, ms"],
        ["pair", f"{keyed * 1000:.1f}"],
        ["micro_batch", f"{stock * 1000:.1f}"],
    ]
    says = f"a step with masks that follow each pair takes {keyed / stock:.2f} times one with torch's own dropout"
    return [passes("mask cost", True, says, rows)]
