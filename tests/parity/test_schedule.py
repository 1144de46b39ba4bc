"""The learning rate of every step beside the reference's schedule."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from cn_clip.training.schedule import warmup_cosine

RUNS = [(5e-5, 100, 300), (1e-3, 0, 40), (5e-4, 7, 8), (3e-5, 50, 20)]
"""(base rate, warm-up, steps): the usual one, none, nothing but warm-up, and a run shorter than its warm-up."""

CURVES = """
    import json, sys, torch
    from cn_clip.training.scheduler import cosine_lr
    curves = []
    for base_lr, warmup, steps in json.loads(sys.argv[2]):
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
        set_lr = cosine_lr(optimizer, base_lr, warmup, steps)
        curve = []
        for step in range(steps):
            set_lr(step)
            curve.append(float(optimizer.param_groups[0]["lr"]))
        curves.append(curve)
    json.dump(curves, open(sys.argv[1], "w"))
"""


@pytest.mark.parity
def test_every_step_has_the_reference_s_rate(run_reference: Callable[..., object], tmp_path: Path) -> None:
    run_reference(CURVES, tmp_path / "curves.json", json.dumps(RUNS))
    theirs = json.loads((tmp_path / "curves.json").read_text())
    for (base_lr, warmup_steps, total_steps), curve in zip(RUNS, theirs, strict=True):
        ours = [
            warmup_cosine(step, base_lr=base_lr, warmup_steps=warmup_steps, total_steps=total_steps)
            for step in range(total_steps)
        ]
        assert all(type(lr) is float for lr in ours)  # numpy's own cannot be read back from a checkpoint
        assert ours == pytest.approx(curve, rel=1e-12, abs=1e-20)
