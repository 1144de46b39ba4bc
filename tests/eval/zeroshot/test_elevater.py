from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from cn_clip.errors import DataError
from cn_clip.eval.zeroshot.elevater import output_path, write_predictions


@pytest.fixture
def model() -> nn.Module:
    return nn.ModuleDict({"visual": nn.Linear(2, 3), "bert": nn.Linear(4, 5)})


def test_file_to_the_character(model: nn.Module, tmp_path: Path) -> None:
    path = tmp_path / "food-101.json"
    scores = torch.tensor([[0.25, 0.75], [1.0, 1e-9], [0.123456789, 0.876543211]])
    write_predictions(path, "food-101", "ViT-B-16", model, scores)
    assert path.read_text() == (
        '{"model_name": "CN-CLIP-ViT-B-16", "dataset_name": "food-101", "num_trainable_params": 0, "num_params": 34, '
        '"num_visual_params": 9, "num_backbone_params": 34, "n_shot": 0, "rnd_seeds": [123], '
        '"predictions": [[[0.25, 0.75], [1.0, 0.0], [0.123457, 0.876543]]]}'
    )
    assert json.loads(path.read_text())["predictions"][0][2] == [0.123457, 0.876543]


def test_a_broken_model_writes_nothing(model: nn.Module, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="not finite"):
        write_predictions(tmp_path / "x.json", "x", "ViT-B-16", model, torch.tensor([[float("nan"), 0.5]]))
    assert list(tmp_path.iterdir()) == []


def test_output_folder_is_made(tmp_path: Path) -> None:
    assert output_path(str(tmp_path / "a" / "b"), "food-101") == tmp_path / "a" / "b" / "food-101.json"
    assert (tmp_path / "a" / "b").is_dir()
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="another --save-dir"):
        output_path(str(tmp_path / "file" / "b"), "food-101")
    with pytest.raises(DataError, match="does not exist"):
        output_path(str(tmp_path), "no/such")
