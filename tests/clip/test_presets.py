import json
from pathlib import Path

import pytest

from cn_clip.clip.presets import (
    MODEL_CONFIGS,
    image_preset,
    image_preset_names,
    text_preset,
    text_preset_names,
)
from cn_clip.errors import ConfigError

PUBLISHED_IMAGES = {"ViT-B-32", "ViT-B-16", "ViT-L-14", "ViT-L-14-336", "ViT-H-14", "RN50"}
PUBLISHED_TEXTS = {"RoBERTa-wwm-ext-base-chinese", "RoBERTa-wwm-ext-large-chinese", "RBT3-chinese"}


def test_names() -> None:
    assert set(image_preset_names()) == PUBLISHED_IMAGES | {"tiny-vit", "tiny-resnet", "quickstart-resnet"}
    assert set(text_preset_names()) == PUBLISHED_TEXTS | {"tiny-bert", "quickstart-bert"}


def test_every_json_is_a_preset() -> None:
    names = set(image_preset_names()) | set(text_preset_names())
    assert {path.stem for path in MODEL_CONFIGS.glob("*.json")} == names
    assert all(image_preset(name).tower in ("vit", "resnet") for name in image_preset_names())
    assert all(text_preset(name).tower == "roberta" for name in text_preset_names())


@pytest.mark.parametrize(
    ("name", "lr", "beta2", "eps"),
    [
        ("RN50", 5e-4, 0.999, 1e-8),
        ("ViT-B-32", 5e-4, 0.98, 1e-6),
        ("ViT-B-16", 5e-4, 0.98, 1e-6),
        ("ViT-L-14", 4e-4, 0.98, 1e-6),
        ("ViT-L-14-336", 4e-4, 0.98, 1e-6),
        ("ViT-H-14", 5e-4, 0.98, 1e-6),
    ],
)
def test_training_defaults_are_the_reference_s(name: str, lr: float, beta2: float, eps: float) -> None:
    training = image_preset(name).training
    assert (training.lr, training.beta1, training.beta2, training.eps) == (lr, 0.9, beta2, eps)


def test_head_width_of_vit_h() -> None:
    assert image_preset("ViT-H-14").options["head_width"] == 80
    assert image_preset("ViT-L-14").options["head_width"] == 64


def test_a_slash_in_a_name_is_a_dash() -> None:
    assert image_preset("ViT-B/16").options == image_preset("ViT-B-16").options


@pytest.mark.parametrize("given", ["ViT-B16", "vit-b-16", "ViT-B-61"])
def test_a_misspelt_name_gets_the_nearest(given: str) -> None:
    with pytest.raises(ConfigError, match=f"no tower preset {given}; did you mean .*ViT-B-16"):
        image_preset(given)


def test_a_text_name_for_an_image_tower_is_unknown() -> None:
    with pytest.raises(ConfigError):
        image_preset("RBT3-chinese")


RN = {"embed_dim": 8, "image_resolution": 32, "vision_width": 8, "vision_patch_size": None}


@pytest.mark.parametrize("layers", ["[1,2,1,1]", [1, 2, 1, 1]])
def test_a_list_of_layers_may_be_a_string(tmp_path: Path, layers: object) -> None:
    path = tmp_path / "mine.json"
    path.write_text(json.dumps({**RN, "vision_layers": layers}))
    preset = image_preset(path)
    assert preset.tower == "resnet"
    assert preset.options["layers"] == (1, 2, 1, 1)


@pytest.mark.parametrize(
    "layers", ["__import__('os').getcwd()", "[1,2", 0, -1, 1.5, True, None, [], [1, "2"]]
)
def test_layers_are_never_evaluated(tmp_path: Path, layers: object) -> None:
    path = tmp_path / "mine.json"
    path.write_text(json.dumps({**RN, "vision_layers": layers}))
    with pytest.raises(ConfigError, match="mine.json: vision_layers must be"):
        image_preset(path)


@pytest.mark.parametrize(
    ("key", "value"), [("vision_width", "64"), ("embed_dim", None), ("image_resolution", 0)]
)
def test_a_field_of_the_wrong_type_is_named(tmp_path: Path, key: str, value: object) -> None:
    path = tmp_path / "mine.json"
    path.write_text(json.dumps({**RN, "vision_layers": [1, 1, 1, 1], key: value}))
    with pytest.raises(ConfigError, match=f"mine.json: {key} must be"):
        image_preset(path)


@pytest.mark.parametrize("text", ["", "{", "[]", "null"])
def test_a_broken_json(tmp_path: Path, text: str) -> None:
    path = tmp_path / "mine.json"
    path.write_text(text)
    with pytest.raises(ConfigError, match="mine.json"):
        image_preset(path)
