"""Adapters, averages, frozen blocks and other optimizers in whole runs: interrupted, under engines, from one to another."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from cn_clip.clip.model import build_model
from cn_clip.clip.weights import load_into, model_weights
from cn_clip.errors import WeightsError
from tests.conftest import ROOT
from tests.training.conftest import Train

ADAPTED = (
    "--set=lora.image_rank=2",
    "--set=lora.text_rank=2",
    "--set=lora.dropout=0.1",
    "--set=ema.decay=0.9",
    "--set=model.mask_ratio=0.5",
)
LAYERED = (
    "--set=model.freeze_image_blocks=1",
    "--set=optim.type=lion",
    "--set=optim.text_layer_decay=0.5",
    "--set=optim.image_lr=1e-5",
    "--set=optim.schedule=cooldown",
    "--set=optim.cooldown_steps=3",
    "--set=ema.decay=0.5",
)


def latest(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = torch.load(run / "checkpoints" / "epoch_latest.pt", weights_only=True)
    return found


def tensors(
    content: Any, path: str = ""
) -> Iterator[tuple[str, Tensor]]:  # Any: nested plain data and tensors
    if isinstance(content, Tensor):
        yield path, content
    elif isinstance(content, dict):
        for name, inner in content.items():
            yield from tensors(inner, f"{path}/{name}")
    elif isinstance(content, list | tuple):
        for number, inner in enumerate(content):
            yield from tensors(inner, f"{path}/{number}")


@pytest.mark.parametrize("settings", [ADAPTED, LAYERED], ids=["adapters", "layers"])
def test_interrupted_is_uninterrupted(
    train: Train, settings: tuple[str, ...], caplog: pytest.LogCaptureFixture
) -> None:
    whole = train("--max-steps=6", *settings, name="whole")
    train("--max-steps=6", "--set=checkpoint.every_steps=4", *settings, name="cut")
    fourth = next((whole.parent / "cut" / "checkpoints").glob("epoch_*_4.pt"))
    again = train("--max-steps=6", f"--resume={fourth}", *settings, name="again")
    ours, theirs = dict(tensors(latest(again))), dict(tensors(latest(whole)))
    assert ours.keys() == theirs.keys()
    assert [name for name, tensor in ours.items() if not torch.equal(tensor, theirs[name])] == []
    assert "no optimizer state" not in caplog.text


def test_a_file_looks_as_if_there_were_no_adapters(train: Train, tiny_split: Path) -> None:
    run = train("--max-steps=4", f"--val-data={tiny_split}", "--lr=1e-2", *ADAPTED)
    file = latest(run)
    plain = build_model("tiny-vit", "tiny-bert")
    assert {name.removeprefix("module.") for name in file["state_dict"]} == plain.state_dict().keys()
    load_into(plain, model_weights(run / "checkpoints" / "epoch_latest.pt"), "the run")
    rows = [json.loads(row) for row in (run / "metrics.jsonl").read_text().splitlines()]
    assert [row for row in rows if row["kind"] == "valid"]


def test_adapters_then_all_weights(train: Train) -> None:
    train("--max-steps=3", *ADAPTED)
    run = train("--max-steps=5", "--set=ema.decay=0.9")
    logs = "".join(path.read_text(encoding="utf-8") for path in sorted(run.glob("out_*.log")))
    assert "theirs are merged into the weights" in logs
    assert "parameters have no optimizer state in the checkpoint" in logs
    assert "parameters that are not trained here is left out" in logs
    assert latest(run)["step"] == 5


def test_one_optimizer_s_file_is_not_another_s(train: Train) -> None:
    train("--max-steps=2")
    with pytest.raises(WeightsError, match="optimizer is adamw, this run's is lion"):
        train("--max-steps=4", "--set=optim.type=lion")


@pytest.mark.slow
@pytest.mark.parametrize("settings", [ADAPTED, LAYERED[:1] + LAYERED[2:]], ids=["adapters", "layers"])
def test_sharded_on_two_ranks_then_one_process_alone(
    train: Train, tmp_path: Path, settings: tuple[str, ...]
) -> None:
    whole = train("--max-steps=4", *settings, name="whole")
    config = tmp_path / "whole" / "resolved.yaml"
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "--"]
    sharded = ["parallel.engine=fsdp", "train.batch_size=2", "train.max_steps=4", "run.name=sharded"]
    sharded += ["checkpoint.every_steps=2", "run.resume=none"]
    done = subprocess.run(
        [*torchrun, "cn_clip/training/main.py", f"--config={config}", *(f"--set={word}" for word in sharded)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    second = next((tmp_path / "sharded" / "checkpoints").glob("epoch_*_2.pt"))
    alone = train("--max-steps=4", f"--resume={second}", *settings, name="alone")
    theirs = latest(whole)["state_dict"]
    for run in (tmp_path / "sharded", alone):
        ours = latest(run)["state_dict"]
        assert ours.keys() == theirs.keys()
        for name, tensor in ours.items():
            torch.testing.assert_close(tensor, theirs[name], rtol=0, atol=1e-5, msg=name)
