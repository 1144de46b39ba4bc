"""Settings that do nothing are said, once, and only those."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from cn_clip.config.describe import describe
from cn_clip.config.load import merge
from cn_clip.config.schema import TrainConfig
from cn_clip.errors import ConfigError
from cn_clip.training.build import build_config
from cn_clip.training.stages import stages_of
from cn_clip.training.unused_settings import NEEDS, unused_settings
from tests.training.conftest import Train

BASE = {
    "data": {"train": {"type": "lmdb_pairs", "path": "/pairs"}},
    "model": {"image": "tiny-vit", "text": "tiny-bert"},
}
GIVEN: dict[str, tuple[object, dict[str, object]]] = {
    "parallel.reshard": (False, {"parallel.engine": "fsdp"}),
    "parallel.shard_ranks": (2, {"parallel.engine": "fsdp"}),
    "parallel.sync": ("micro_batch", {"parallel.engine": "fsdp"}),
    "distill.teacher": ("/teacher", {"distill.enabled": True}),
    "distill.weight": (0.7, {"distill.enabled": True, "distill.teacher": "/teacher"}),
    "distill.type": ("similarity", {"distill.enabled": True, "distill.teacher": "/teacher"}),
    "distill.width": ("interpolate", {"distill.enabled": True, "distill.teacher": "/teacher"}),
    "optim.cooldown_steps": (5, {"optim.schedule": "cooldown"}),
    "optim.end_lr": (1e-6, {"optim.schedule": "cooldown", "optim.cooldown_steps": 5}),
    "optim.eps": (1e-6, {"optim.type": "lamb"}),
    "optim.beta1": (0.8, {"optim.type": "lion", "optim.beta2": 0.9}),
    "optim.beta2": (0.9, {"optim.type": "lion", "optim.beta1": 0.8}),
    "model.mask_schedule": ("linear", {"model.mask_ratio": 0.5}),
    "model.unmasked_share": (0.1, {"model.mask_ratio": 0.5}),
    "lora.alpha": (4.0, {"lora.text_rank": 2}),
    "lora.dropout": (0.1, {"lora.image_rank": 2}),
    "ema.warmup": (False, {"ema.decay": 0.9}),
    "checkpoint.every_epochs": (2, {"checkpoint.enabled": True}),
    "checkpoint.every_steps": (2, {"checkpoint.enabled": True}),
    "checkpoint.every_minutes": (2, {"checkpoint.enabled": True}),
    "checkpoint.keep_last": (2, {"checkpoint.enabled": True}),
    "checkpoint.best": ("mean_recall", {"checkpoint.enabled": True}),
    "checkpoint.asynchronous": (False, {"checkpoint.enabled": True}),
    "checkpoint.safetensors": (True, {"checkpoint.enabled": True}),
    "checkpoint.sharded": (True, {"checkpoint.enabled": True}),
    "validate.recall_at": ([1], {"validate.recall": True}),
    "validate.max_pairs": (5, {"validate.recall": True}),
    "data.max_bad_share": (0.5, {"data.bad_pairs": "skip"}),
}
"""Each setting of the table: a value, and what makes that do something."""
OFF = {
    "checkpoint.enabled": False,
    "validate.recall": False,
    "optim.schedule": "constant",
    "optim.type": "sgd",
}
"""What is on, or has them, by default."""


def config_of(**settings: Any) -> TrainConfig:
    return build_config(merge(BASE, settings.items()))


def test_the_table_names_settings_that_exist_and_each_is_tried_here() -> None:
    named = [f"{need.section}.{name}" for need in NEEDS for name in need.settings]
    assert len(set(named)) == len(named)
    assert set(named) <= set(describe(TrainConfig))
    assert set(named) == set(GIVEN)


def test_nothing_is_said_of_the_defaults() -> None:
    assert unused_settings([config_of()]) == []
    assert unused_settings([config_of(**OFF)]) == []


@pytest.mark.parametrize("setting", GIVEN)
def test_a_setting_that_does_nothing_is_named_and_one_that_does_is_not(setting: str) -> None:
    value, needed = GIVEN[setting]
    (sentence,) = unused_settings([config_of(**{**OFF, setting: value})])
    assert sentence.startswith(f"{setting} is ")
    assert unused_settings([config_of(**{setting: value, **needed})]) == []


def test_what_one_stage_uses_is_used() -> None:
    stages = [{"name": "masked", "steps": 1, "model": {"mask_ratio": 0.5}}, {"name": "whole", "steps": 1}]
    given = {"stages": stages, "model.mask_schedule": "linear", "lora.alpha": 3.0}
    configs = [stage.config for stage in stages_of(config_of(**given), build_config)]
    (sentence,) = unused_settings(configs)
    assert sentence.startswith("lora.alpha is 3.0, which does nothing without lora.image_rank")


def test_deepspeed_s_file_under_another_engine_is_an_error() -> None:
    with pytest.raises(ConfigError, match=r"deepspeed_config is x\.json, but parallel\.engine=fsdp"):
        config_of(**{"parallel.deepspeed_config": "x.json", "parallel.engine": "fsdp"})
    stages = [{"name": "a", "steps": 1, "parallel": {"engine": "zero1"}}]
    config_of(**{"stages": stages, "parallel.deepspeed_config": "x.json"})


def test_a_run_says_it_once_and_trains(train: Train, tmp_path: Path) -> None:
    config = tmp_path / "run.yaml"
    stages = [{"name": "a", "steps": 1}, {"name": "b", "steps": 1}]
    config.write_text(yaml.safe_dump({"stages": stages, "model": {"unmasked_share": 0.5}}))
    run = train(f"--config={config}", "--teacher-model-name=/nowhere", "--kd_loss_weight=0.7")
    said = next(run.glob("out_*.log")).read_text(encoding="utf-8").splitlines()
    warned = [line for line in said if "does nothing without" in line]
    assert [line.split(" | ")[3].split()[0] for line in warned] == [
        "distill.teacher",
        "distill.weight",
        "model.unmasked_share",
    ]
    assert all("WARNING" in line for line in warned)


def test_the_dry_run_says_it_in_its_plan(
    tiny_split: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from cn_clip.training.main import main

    main(
        [f"--train-data={tiny_split}", f"--logs={tmp_path}", "--vision-model=tiny-resnet", "--text-model=tiny-bert",
         "--batch-size=4", "--max-steps=2", "--set=lora.dropout=0.1", "--mask-ratio=0.5", "--dry-run"]
    )  # fmt: skip
    plan = capsys.readouterr().out
    said = [line for line in plan.splitlines() if line.startswith("no effect")]
    assert len(said) == 1 and "lora.dropout is 0.1" in said[0]
    assert "model.mask_ratio does nothing: tiny-resnet leaves out no patches" in plan
    assert "patches masked" not in plan
