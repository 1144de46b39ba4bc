"""A model from its settings, and what is said about them."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from timm.models import save_for_hf

from cn_clip.clip.model import build_model
from cn_clip.config.schema import Model, Parallel, TrainConfig
from cn_clip.parallel.engines.ddp import CopiesEngine
from cn_clip.parallel.precision import Precision
from cn_clip.parallel.ranks import Ranks
from cn_clip.training.build import _can_halve, build_clip
from tests.training.conftest import Train


def timm_folder(folder: Path) -> Path:
    sizes: dict[str, Any] = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 1, "num_heads": 2}
    save_for_hf(timm.create_model("vit_tiny_patch16_224", **sizes), str(folder), model_args=sizes)
    return folder


@pytest.mark.parametrize(
    ("image", "ratio", "num_notes"),
    [("tiny-resnet", 0.5, 1), ("tiny-resnet", 0.0, 0), ("tiny-vit", 0.5, 0), ("timm", 0.5, 1)],
)
def test_masking_that_does_nothing_is_noted_once(
    image: str, ratio: float, num_notes: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    if image == "timm":
        image = str(timm_folder(tmp_path))
    with caplog.at_level(logging.WARNING):
        build_clip(Model(image=image, text="tiny-bert", mask_ratio=ratio), seed=1)
    assert sum("mask_ratio" in message for message in caplog.messages) == num_notes


@pytest.mark.parametrize(("image", "logged"), [("tiny-resnet", 0.0), ("tiny-vit", 0.5)])
def test_a_ratio_that_does_nothing_is_none_in_the_log(train: Train, image: str, logged: float) -> None:
    run = train("--max-steps=1", f"--vision-model={image}", "--mask-ratio=0.5")
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [row["mask_ratio"] for row in rows if row["kind"] == "train"] == [logged]


@pytest.mark.parametrize(
    ("are_local", "sync_batchnorm", "can"), [(True, False, True), (False, False, False), (True, True, False)]
)
def test_micro_batches_are_halved_only_where_a_rank_can_fail_alone(
    are_local: bool, sync_batchnorm: bool, can: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """Else the others would wait for it in the middle of a pass; a run is told so at its beginning."""
    config = TrainConfig(parallel=Parallel(sync_batchnorm=sync_batchnorm))
    ranks = Ranks(rank=0, world_size=1, local_rank=0, device=torch.device("cpu"))
    model = build_model("tiny-vit", "tiny-bert")
    engine = CopiesEngine(model, config.parallel, Precision("fp32", ranks.device), ranks)
    engine.passes_are_local = are_local
    with caplog.at_level(logging.INFO):
        assert _can_halve(config, engine) is can
    assert sum("Running out of memory ends this run" in message for message in caplog.messages) == (not can)
