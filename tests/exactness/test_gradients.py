"""One optimizer step is a function of the weights, the global batch and the seed, not of how the batch was cut.

Real processes over gloo. With dropout and FLIP on, cuts with equal micro-batches agree (each has its own seed); with
both off, every cut does.
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
import torch

WORKER = Path(__file__).with_name("gradients_worker.py")
ROOT = Path(__file__).resolve().parents[2]
PLAIN = {
    "image": "tiny-vit", "frozen": "none", "dropout": 0.0, "mask_ratio": 0.0,
    "targets": "diagonal", "gather": True, "gradient": "exact",
}  # fmt: skip
VARIANTS: tuple[dict[str, Any], ...] = (
    {},
    {"targets": "positives"},
    {"frozen": "image"},
    {"frozen": "text"},
    {"dropout": 0.1, "mask_ratio": 0.5},
    {"gradient": "reference"},
    {"gather": False},
    {"image": "tiny-resnet"},
)
CUTS = ((1, 1), (1, 4), (2, 1), (2, 2), (4, 1))
"""World size and micro-batches per rank."""

Step = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def step(tmp_path_factory: pytest.TempPathFactory) -> Step:
    """Result of one variant under one cut; each world size is started once for all of them."""
    found: dict[tuple[int, int, str], dict[str, Any]] = {}
    folder = tmp_path_factory.mktemp("gradients")
    for world_size in sorted({world_size for world_size, _ in CUTS}):
        cases = [(a, variant) for w, a in CUTS if w == world_size for variant in VARIANTS]
        words = [str(WORKER), json.dumps([{**PLAIN, **v, "accumulate": a} for a, v in cases])]
        output = folder / f"{world_size}.pt"
        torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={world_size}", "--"]
        done = subprocess.run(
            [sys.executable, *(torchrun if world_size > 1 else []), *words, str(output)],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        for (accumulate, variant), result in zip(cases, torch.load(output, weights_only=True), strict=True):
            found[world_size, accumulate, json.dumps({**PLAIN, **variant})] = result
    return lambda world_size, accumulate, **variant: found[
        world_size, accumulate, json.dumps({**PLAIN, **variant})
    ]


def distance(one: dict[str, Any], other: dict[str, Any]) -> float:
    """Norm of the difference of all gradients over the norm of the first."""
    a, b = one["gradients"], other["gradients"]
    assert a.keys() == b.keys()
    difference = sum((a[name] - b[name]).double().norm() ** 2 for name in a)
    return float((difference / sum(g.double().norm() ** 2 for g in a.values())) ** 0.5)


@pytest.mark.parametrize(("world_size", "accumulate"), [(1, 4), (2, 1), (2, 2), (4, 1)])
@pytest.mark.parametrize("targets", ["diagonal", "positives"])
def test_any_cut_gives_the_gradients_of_one_process(
    step: Step, world_size: int, accumulate: int, targets: str
) -> None:
    whole, cut = step(1, 1, targets=targets), step(world_size, accumulate, targets=targets)
    assert cut["report"] == pytest.approx(whole["report"], abs=1e-6)
    assert distance(whole, cut) < 1e-5


@pytest.mark.parametrize(("world_size", "accumulate"), [(2, 2), (4, 1)])
def test_dropout_and_flip_masks_follow_the_micro_batch_not_the_rank(
    step: Step, world_size: int, accumulate: int
) -> None:
    options: dict[str, Any] = {"dropout": 0.1, "mask_ratio": 0.5}
    one, cut = step(1, 4, **options), step(world_size, accumulate, **options)
    assert cut["report"]["loss"] == pytest.approx(one["report"]["loss"], abs=1e-6)
    assert distance(one, cut) < 1e-5
    assert distance(one, step(1, 4)) > 0.1  # the masks do something


@pytest.mark.parametrize("frozen", ["image", "text"])
@pytest.mark.parametrize(("world_size", "accumulate"), [(1, 4), (2, 1), (2, 2)])
def test_a_frozen_tower_has_no_gradients_and_the_other_all(
    step: Step, frozen: str, world_size: int, accumulate: int
) -> None:
    whole, cut = step(1, 1, frozen=frozen), step(world_size, accumulate, frozen=frozen)
    prefix = {"image": "visual.", "text": "bert."}[frozen]
    assert not any(name.startswith(prefix) for name in cut["gradients"])
    assert distance(whole, cut) < 1e-5


def test_reference_gradient_leaves_one_share_on_the_towers_and_all_on_the_scale(step: Step) -> None:
    exact, reference = step(2, 2)["gradients"], step(2, 2, gradient="reference")["gradients"]
    torch.testing.assert_close(reference["logit_scale"], exact["logit_scale"])
    torch.testing.assert_close(reference["visual.conv1.weight"] * 2, exact["visual.conv1.weight"])


def test_local_loss_is_the_mean_of_the_ranks_own(step: Step) -> None:
    local = step(2, 1, gather=False)
    assert local["report"]["loss"] < step(2, 1)["report"]["loss"]  # fewer negatives
    assert local["report"]["image_to_text_accuracy"] <= 1


def test_batchnorm_enters_each_micro_batch_once(step: Step) -> None:
    """Statistics after accumulating are those of one pass over the same micro-batches."""
    cut = step(1, 4, image="tiny-resnet")["statistics"]
    assert cut and all(value.isfinite().all() for value in cut.values())
    # two steps of four micro-batches at momentum 0.1 leave 0.9^8 of the first variance of 1; twice as many would not
    frozen_share = 0.9**8
    lowest = min(float(value.min()) for name, value in cut.items() if name.endswith("running_var"))
    assert lowest >= frozen_share * 0.999
