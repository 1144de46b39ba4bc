"""What is refused before DeepSpeed is there. What it does is in tests/exactness, with real ranks."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from timm.optim import create_optimizer_v2
from torch import nn

from cn_clip.config.schema import Parallel
from cn_clip.errors import ConfigError
from cn_clip.parallel.engines import zero, zero_settings
from cn_clip.parallel.engines.zero_settings import deepspeed_settings
from cn_clip.parallel.precision import Precision
from cn_clip.parallel.ranks import Ranks

CPU = torch.device("cpu")
ALONE = Ranks(0, 1, 0, CPU)


def settings_of(given: Any, tmp_path: Path, engine: str = "zero2", precision: str = "fp32") -> dict[str, Any]:
    path = tmp_path / "ds.json"
    path.write_text(given if isinstance(given, str) else json.dumps(given), encoding="utf-8")
    settings = Parallel(engine=engine, deepspeed_config=str(path))  # type: ignore[arg-type]  # any name, as YAML has
    return deepspeed_settings(settings, Precision(precision, CPU))


def test_the_user_s_json_is_laid_over_ours(tmp_path: Path) -> None:
    found = settings_of({"zero_optimization": {"overlap_comm": False}, "steps_per_print": 5}, tmp_path)
    assert found["zero_optimization"]["stage"] == 2 and found["zero_optimization"]["overlap_comm"] is False
    assert found["steps_per_print"] == 5
    assert found["gradient_clipping"] == 0.0  # DeepSpeed's own default clips to 1


@pytest.mark.parametrize(
    ("num_trained", "bucket"), [(188_000_000, 188_000_000), (958_000_000, 500_000_000), (0, 1)]
)
def test_the_buffer_of_gradients_is_no_larger_than_all_of_them(
    num_trained: int, bucket: int, tmp_path: Path
) -> None:
    precision = Precision("fp32", CPU)
    found = deepspeed_settings(Parallel(engine="zero1"), precision, num_trained=num_trained)
    assert found["zero_optimization"]["reduce_bucket_size"] == bucket
    given = {"zero_optimization": {"reduce_bucket_size": 7}}
    assert settings_of(given, tmp_path)["zero_optimization"]["reduce_bucket_size"] == 7


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"optimizer": {"type": "Adam"}}, "sets optimizer, which optim decides"),
        ({"gradient_accumulation_steps": 4}, "which train.accumulate decides"),
        ({"bf16": {"enabled": True}}, "which train.precision decides"),
        ({"zero_optimization": {"stage": 3}}, "sets stage 3, but parallel.engine is zero2"),
        ("{", "is no JSON"),
        ("[]", "is no JSON object"),
        ({"zero_optimization": [1]}, "sets zero_optimization to \\[1\\]: put its settings in braces"),
    ],
)
def test_what_the_run_decides_is_refused(given: Any, says: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=says):
        settings_of(given, tmp_path)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    settings = Parallel(engine="zero1", deepspeed_config=str(tmp_path / "none.json"))
    with pytest.raises(ConfigError, match=r"none\.json, which cannot be read \(No such file"):
        deepspeed_settings(settings, Precision("fp32", CPU))


@pytest.mark.parametrize("precision", ["bf16"])
def test_weights_in_half_precision_are_refused(precision: str) -> None:
    with pytest.raises(ConfigError, match="take amp_bf16 or fp32, or parallel.engine=fsdp"):
        zero.build(nn.Linear(2, 2), Parallel(engine="zero1"), Precision(precision, CPU), ALONE)


def test_without_deepspeed_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(
        sys.modules, "deepspeed", None
    )  # what Python itself does for a package that is not there
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    with pytest.raises(ConfigError, match=r"needs DeepSpeed, .*pip install 'cn_clip\[deepspeed\]'"):
        zero.build(nn.Linear(2, 2), Parallel(engine="zero3"), Precision("fp32", CPU), ALONE)


@pytest.mark.parametrize(("name", "alone"), [("adamw", True), ("lion", True), ("sgd", True), ("lamb", False)])
def test_optimizers_that_look_at_whole_weights_are_told(name: str, alone: bool) -> None:
    layer = nn.Linear(4, 4)
    optimizer = create_optimizer_v2(list(layer.parameters()), name, 0.1, 0.01)
    before = [parameter.clone() for parameter in layer.parameters()]
    assert zero_settings.moves_numbers_alone(optimizer) is alone
    assert not optimizer.state  # it was tried on others
    assert all(torch.equal(a, b) for a, b in zip(before, layer.parameters(), strict=True))
