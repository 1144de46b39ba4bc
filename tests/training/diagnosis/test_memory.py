"""The prediction of memory beside what real steps took, and beside what cannot be otherwise."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from cn_clip.config.schema import TrainConfig
from cn_clip.parallel.ranks import Ranks
from cn_clip.training.build import build_config
from cn_clip.training.diagnosis.memory import check_memory, predict, teacher_bytes

WORKER, ROOT = Path(__file__).with_name("memory_worker.py"), Path(__file__).resolve().parents[3]
ALONE = Ranks(0, 1, 0, torch.device("cpu"))
MIB = 2**20


def plain(image: str = "tiny-vit", text: str = "tiny-bert", **sections: dict[str, Any]) -> dict[str, Any]:
    """Settings of a run whose pairs are never read."""
    return {
        "data": {"train": {"type": "lmdb_pairs", "path": "none"}},
        **sections,
        "model": {"image": image, "text": text, **sections.get("model", {})},
    }


def config(image: str = "tiny-vit", text: str = "tiny-bert", **sections: dict[str, Any]) -> TrainConfig:
    return build_config(plain(image, text, **sections))


def measure(
    what: str, cases: list[dict[str, Any]], folder: Path, *, ranks: int = 1
) -> list[dict[str, float]]:
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}", "--"]
    words = [str(WORKER), what, json.dumps(cases), str(folder / "found.json")]
    done = subprocess.run(
        [sys.executable, *(torchrun if ranks > 1 else []), *words],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found: list[dict[str, float]] = json.loads((folder / "found.json").read_text())
    return found


def test_tiny_runs_take_what_was_predicted(tmp_path: Path) -> None:
    """Within 3 %, whatever the precision, the towers, the recompute, the accumulation; seen: 0.3 %, with bf16 2.3 %."""
    cases = [
        plain(train={"batch_size": 64, "precision": "fp32"}),
        plain(train={"batch_size": 64, "precision": "amp_bf16", "randomness": "micro_batch"}),
        plain(model={"mask_ratio": 0.5}, train={"batch_size": 32, "precision": "fp32", "accumulate": 3}),
        plain(
            "tiny-resnet",
            model={"recompute": True},
            train={"batch_size": 64, "precision": "fp32"},
        ),
    ]
    for case, found in zip(cases, measure("allocated", cases, tmp_path), strict=True):
        assert found["tensors"] == pytest.approx(found["measured"], rel=0.03), case


@pytest.mark.exhaustive
def test_a_run_of_published_towers_takes_what_was_predicted(tmp_path: Path) -> None:
    """Tensors within 2 % (seen: 0.1 %), the process within 20 % (seen: 1 %)."""
    case = plain("ViT-B-32", "RBT3-chinese", train={"batch_size": 16, "precision": "fp32"})
    (found,) = measure("allocated", [case], tmp_path)
    assert found["tensors"] == pytest.approx(found["measured"], rel=0.02)
    (found,) = measure("grown", [case], tmp_path)
    assert found["total"] == pytest.approx(found["measured"], rel=0.2)


@pytest.mark.slow
def test_two_ranks_take_what_was_predicted(tmp_path: Path) -> None:
    """DDP within 10 % (seen: 0.1 %; now and then gloo holds DDP's first buffer a while longer), FSDP2 within 25 % (13 %)."""
    cases = [
        plain(
            train={"batch_size": 64, "precision": "fp32", "accumulate": accumulate},
            parallel={"engine": engine},
        )
        for engine in ("ddp", "fsdp")
        for accumulate in (1, 2)
    ]
    found = measure("allocated", cases, tmp_path, ranks=2)
    for case, one in zip(cases, found, strict=True):
        rel = 0.1 if case["parallel"]["engine"] == "ddp" else 0.25
        assert one["tensors"] == pytest.approx(one["measured"], rel=rel), case


def test_nothing_is_allocated_for_a_model_of_any_size() -> None:
    prediction = predict(config("ViT-L-14", "RBT3-chinese"), 1, "cuda")
    assert 340e6 < prediction.cost.weights.count < 345e6
    assert prediction.cost.weights.bytes == 4 * prediction.cost.weights.count
    assert prediction.cost.weights.optimizer_bytes == pytest.approx(
        2 * prediction.cost.weights.bytes, rel=1e-3
    )


def test_what_is_frozen_or_recomputed_is_not_kept() -> None:
    whole, frozen, recomputed = (
        predict(config(model=model), 1, "cpu").cost
        for model in ({}, {"freeze_image": True}, {"recompute": True})
    )
    assert frozen.micro_batch.kept_bytes < 0.8 * whole.micro_batch.kept_bytes
    assert frozen.weights.trained < whole.weights.trained
    assert recomputed.micro_batch.kept_bytes < 0.5 * whole.micro_batch.kept_bytes
    assert recomputed.micro_batch.flops > 1.2 * whole.micro_batch.flops


def test_adapters_train_little() -> None:
    cost = predict(config(lora={"image_rank": 4, "text_rank": 4}), 1, "cpu").cost
    assert cost.weights.optimizer_bytes < 0.1 * cost.weights.bytes


def test_activations_grow_with_the_pairs_and_the_loss_with_their_tile() -> None:
    small, large = (
        predict(config(train={"batch_size": size, "precision": "fp32"}), 1, "cpu") for size in (8, 64)
    )
    ratio = large.cost.micro_batch.kept_bytes / small.cost.micro_batch.kept_bytes
    assert ratio == pytest.approx(8, rel=0.05)
    coarse, fine = (
        predict(config(train={"batch_size": 4096}, loss={"tile": tile}), 8, "cpu").loss.bytes
        for tile in (4096, 256)
    )
    assert coarse - fine == pytest.approx(8 * (4096**2 - 256**2), rel=0.3)


def test_engines_share_what_they_say_they_share() -> None:
    def share(engine: str, ranks: int) -> Any:
        return predict(config("ViT-B-32", "RBT3-chinese", parallel={"engine": engine}), ranks, "cuda").share

    alone, copies = share("ddp", 1), share("ddp", 8)
    assert copies.weights == alone.weights and copies.optimizer == alone.optimizer
    sharded = share("fsdp", 8)
    assert sharded.weights == pytest.approx(alone.weights / 8, rel=0.05)
    assert sharded.optimizer == pytest.approx(alone.optimizer / 8, rel=0.05)
    one, two, three = (share(f"zero{stage}", 8) for stage in (1, 2, 3))
    assert one.gradients == alone.gradients and two.gradients == pytest.approx(alone.gradients / 8)
    assert two.weights == alone.weights and three.weights == pytest.approx(alone.weights / 8, rel=0.01)
    assert one.optimizer < alone.optimizer / 4
    assert share("fsdp", 1) == alone


def test_a_run_that_fits_is_ok_and_one_that_does_not_is_told_what_to_change() -> None:
    run = config(train={"batch_size": 64, "precision": "fp32"})
    prediction = predict(run, 1, "cpu")
    assert check_memory(run, prediction, 2 * prediction.total, ranks=ALONE).verdict == "ok"
    assert check_memory(run, prediction, 1.05 * prediction.total, ranks=ALONE).verdict == "slow"
    wrong = check_memory(run, prediction, 0.93 * prediction.total, ranks=ALONE)
    assert wrong.verdict == "wrong"
    assert "train.accumulate=" in wrong.next_step
    advised = {
        name: int(value)
        for word in wrong.next_step.replace(":", "").split()
        if "=" in word
        for name, value in [word.rsplit(".")[-1].split("=")]
    }
    assert advised["batch_size"] * advised["accumulate"] == 64
    smaller = replace(run, train=replace(run.train, **advised))
    assert predict(smaller, 1, "cpu").total <= 0.93 * prediction.total


def test_recompute_and_other_engines_are_advised_where_smaller_batches_are_not_enough() -> None:
    run = config("ViT-B-32", "RBT3-chinese", train={"batch_size": 2, "precision": "fp32"})
    prediction = predict(run, 1, "cpu")
    hopeless = check_memory(run, prediction, 100 * MIB, ranks=ALONE)
    assert "even one pair" in hopeless.next_step


def test_a_teacher_counts_as_much_as_its_files(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(bytes(1000))
    run = config()
    assert teacher_bytes(run) == 0
    distilled = replace(run, distill=replace(run.distill, enabled=True, teacher=str(tmp_path)))
    assert teacher_bytes(distilled) == 1000
