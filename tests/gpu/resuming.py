"""A run that stops half-way and goes on from its checkpoint ends where an uninterrupted one ends."""

from __future__ import annotations

import torch

from gpu.outcome import Outcome, passes
from gpu.workplace import Workplace

STEPS, STOP = 6, 3
CLOSE = 1e-3
"""Relative difference of all weights on CUDA, where sums may come in another order from run to run."""


def check_resume(place: Workplace) -> list[Outcome]:
    """The trainer with amp, STEPS steps at once against STOP steps and the rest from `epoch_latest.pt`."""
    settings = ("train.precision=amp", "checkpoint.every_steps=1", "checkpoint.safetensors=true")
    place.train("whole", *settings, f"train.max_steps={STEPS}")
    place.train("halves", *settings, f"train.max_steps={STOP}")
    rows = place.train("halves", *settings, f"train.max_steps={STEPS}")
    whole, halves = (
        torch.load(
            place.folder / name / "checkpoints" / "epoch_latest.pt", weights_only=True, map_location="cpu"
        )
        for name in ("whole", "halves")
    )
    is_equal = all(
        torch.equal(weight, halves["state_dict"][key]) for key, weight in whole["state_dict"].items()
    )
    apart = _relative_difference(whole["state_dict"], halves["state_dict"])
    complete = [row["step"] for row in rows] == list(range(1, STEPS + 1)) and halves["step"] == STEPS
    says = (
        f"{STOP} steps, then {STEPS - STOP} more from the checkpoint: weights "
        f"{'equal bit for bit' if is_equal else f'differ by {apart:.1e} of their length'}, each step logged once: {complete}"
    )
    holds = complete and (is_equal or (place.is_cuda and apart < CLOSE))
    return [passes("resume", holds, says)]


def _relative_difference(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> float:
    apart = sum(float((weight.double() - right[key].double()).norm() ** 2) for key, weight in left.items())
    size = sum(float(weight.double().norm() ** 2) for weight in left.values())
    return float((apart / size) ** 0.5)
