"""What a run leaves as it is, and what it still trains."""

from __future__ import annotations

import logging

import pytest
from torch import nn

from cn_clip.clip.model import CLIP, build_model
from cn_clip.config.schema import Model
from cn_clip.errors import ConfigError
from cn_clip.training.freezing import freeze_towers
from cn_clip.training.tower_layers import image_depths, text_depths

BLOCK = "visual.transformer.resblocks.{}."


def trained(model: CLIP) -> set[str]:
    return {name for name, p in model.named_parameters() if p.requires_grad}


def everything(model: CLIP) -> set[str]:
    return {name for name, _ in model.named_parameters()}


def test_the_image_tower_takes_its_projection_with_it(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    model = build_model("tiny-vit", "tiny-bert")
    frozen = freeze_towers(model, Model(freeze_image=True))
    assert frozen == [model.visual]
    assert trained(model) == {name for name in everything(model) if not name.startswith("visual.")}
    assert "The visual encoder is freezed during training." in caplog.messages


def test_the_text_tower_takes_its_projection_with_it() -> None:
    model = build_model("tiny-vit", "tiny-bert")
    frozen = freeze_towers(model, Model(freeze_text=True))
    assert frozen == [model.bert]
    left = {name for name in everything(model) if not name.startswith("bert.") and name != "text_projection"}
    assert trained(model) == left
    assert "logit_scale" in left


def test_the_first_blocks_take_what_stands_before_them_not_the_head() -> None:
    model = build_model("tiny-vit", "tiny-bert")
    frozen = freeze_towers(model, Model(freeze_image_blocks=1, freeze_text_blocks=2))
    still = trained(model)
    stem = {"class_embedding", "positional_embedding", "conv1.weight", "ln_pre.weight", "ln_pre.bias"}
    assert everything(model) - still == {
        name
        for name in everything(model)
        if name.startswith((BLOCK.format(0), "bert."))
        or name in {f"visual.{part}" for part in stem}
    }  # fmt: skip
    assert {"visual.proj", "visual.ln_post.weight", "text_projection"} <= still
    assert model.bert in frozen
    assert model.visual.blocks()[0] in frozen
    assert model.visual not in frozen


def test_a_resnet_s_first_blocks_keep_their_statistics() -> None:
    model = build_model("tiny-resnet", "tiny-bert")
    frozen = freeze_towers(model, Model(freeze_image_blocks=2))
    inside = {id(m) for module in frozen for m in module.modules()}
    norms = {name: m for name, m in model.named_modules() if isinstance(m, nn.BatchNorm2d)}
    kept = {name for name, norm in norms.items() if id(norm) in inside}
    assert kept == {
        name
        for name in norms
        if name.startswith(("visual.bn", "visual.layer1.0.", "visual.layer2.0."))
    }  # fmt: skip


def test_no_block_is_no_change() -> None:
    model = build_model("tiny-resnet", "tiny-bert")
    assert freeze_towers(model, Model()) == []
    assert trained(model) == everything(model)


def test_more_blocks_than_there_are() -> None:
    model = build_model("tiny-vit", "tiny-bert")
    with pytest.raises(ConfigError, match=r"freeze_text_blocks is 3, but the text tower has 2 blocks"):
        freeze_towers(model, Model(freeze_text_blocks=3))


def test_both_towers() -> None:
    with pytest.raises(ConfigError, match="nothing but the scale"):
        freeze_towers(build_model("tiny-vit", "tiny-bert"), Model(freeze_image=True, freeze_text=True))


@pytest.mark.parametrize("image", ["tiny-vit", "tiny-resnet"])
def test_every_parameter_has_one_depth(image: str) -> None:
    model = build_model(image, "tiny-bert")
    images, texts = image_depths(model), text_depths(model)
    assert {*images, *texts} == everything(model) - {"logit_scale"}
    assert images.keys().isdisjoint(texts)
    assert set(images.values()) == set(range(len(model.visual.blocks()) + 2))
    assert texts["text_projection"] == len(model.bert.blocks()) + 1
    assert texts["bert.embeddings.LayerNorm.weight"] == 0
    assert texts["bert.encoder.layer.1.output.dense.bias"] == 2
