"""Losses as a run uses them: hard negatives from the store, SigLIP's bias in model and file."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from cn_clip.data.store import SplitWriter
from tests.training.conftest import CAPTIONS, NUM_PAIRS, Train, png


def losses(run: Path) -> list[float]:
    rows = [json.loads(row) for row in (run / "metrics.jsonl").read_text().splitlines()]
    return [row["loss"] for row in rows if row["kind"] == "train"]


def checkpoint(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = torch.load(run / "checkpoints" / "epoch_latest.pt", weights_only=True)
    return found


@pytest.fixture
def split_with_negatives(tmp_path: Path) -> Path:
    """Every second pair has two captions that are wrong for it."""
    path = tmp_path / "lmdb" / "train"
    with SplitWriter(path) as writer:
        for number in range(NUM_PAIRS):
            negatives = ["一只正在睡觉的狗", "海边的日出"] if number % 2 else []
            writer.add_image(100 + number, png(number))
            caption = CAPTIONS[number % len(CAPTIONS)]
            writer.add_pair(100 + number, number, f"{caption}{number}", hard_negatives=negatives)
    return path


def test_hard_negatives_stand_against_every_picture(train: Train, split_with_negatives: Path) -> None:
    words = ("--max-steps=3",)
    plain = train(*words, name="plain", data=split_with_negatives)
    hard = train(*words, "--set=data.hard_negatives=2", name="hard", data=split_with_negatives)
    assert losses(hard)[0] > losses(plain)[0]  # more to be told from


def test_cutting_a_batch_with_hard_negatives_changes_nothing(
    train: Train, split_with_negatives: Path
) -> None:
    words = ("--max-steps=4", "--set=data.hard_negatives=2", "--lr=1e-3")
    whole = train(*words, "--batch-size=8", name="whole", data=split_with_negatives)
    cut = train(*words, "--batch-size=2", "--accum-freq=4", name="cut", data=split_with_negatives)
    assert losses(cut) == pytest.approx(losses(whole), abs=2e-5)


def test_the_sigmoid_loss_learns_a_bias_that_files_hold(train: Train) -> None:
    words = ("--set=loss.type=sigmoid", "--lr=1e-2")
    run = train(*words, "--max-steps=6", "--save-step-frequency=3", name="whole")
    saved = checkpoint(run)["state_dict"]
    assert saved["module.logit_bias"] != -10 and saved["module.logit_scale"] != math.log(10)
    again = train(*words, "--max-steps=6", f"--resume={run / 'checkpoints' / 'epoch_1_3.pt'}", name="again")
    for name, value in saved.items():
        torch.testing.assert_close(checkpoint(again)["state_dict"][name], value, rtol=0, atol=0)
    softmax = train(
        "--max-steps=1", f"--set=model.init_from={run / 'checkpoints' / 'epoch_latest.pt'}", name="soft"
    )
    assert "module.logit_bias" not in checkpoint(softmax)["state_dict"]


def test_label_smoothing_and_positives(train: Train) -> None:
    first = [
        losses(train("--max-steps=1", f"--set=loss.{setting}", name=f"run{number}"))[0]
        for number, setting in enumerate(("targets=diagonal", "targets=positives", "label_smoothing=0.2"))
    ]
    assert len(set(first)) == 3
