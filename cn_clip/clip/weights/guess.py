"""Which towers weights belong to, told from the shapes of their tensors."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from cn_clip.clip.presets import image_preset, image_preset_names, text_preset, text_preset_names
from cn_clip.clip.weights.layouts import Weights
from cn_clip.errors import WeightsError

Facts = Mapping[str, Any]
"""Option name -> value; `Any` since options are numbers and lists."""


@dataclass(frozen=True)
class TowerFacts:
    """What shapes tell about a tower; `tower` is None when the file has none of its tensors."""

    tower: str | None
    facts: Facts

    def __str__(self) -> str:
        if self.tower is None:
            return "none"
        return f"a {self.tower} with " + ", ".join(f"{name} {value}" for name, value in self.facts.items())


RESNET_STRIDE_PX = 32
"""Side of the picture's part behind one cell of a ResNet's last feature map."""


def guess_towers(weights: Weights) -> tuple[str, str]:
    """Names of the image and the text preset that weights in the model's own layout fit."""
    image, text = _image_name(weights), _text_name(weights)
    if image is None or text is None:
        raise WeightsError(
            f"no preset fits these weights, which seem to have {describe_towers(weights)}; "
            "name the towers with vision_model_name and text_model_name"
        )
    return image, text


def guess_image_px(weights: Weights) -> int | None:
    """Picture side the position embedding was made for; None when there is none to tell from.

    A grid leaves the part of a cell open that the picture ends in: the preset's own side where it has the same grid.
    """
    facts = _image_facts(weights).facts
    px, cell_px = facts.get("image_px"), facts.get("patch_px", RESNET_STRIDE_PX)
    name = _image_name(weights)
    if name is not None and px is not None and image_preset(name).image_px // cell_px == px // cell_px:
        return image_preset(name).image_px
    return px


def trained_image_px(image: str, weights: Weights) -> int:
    """Side of the pictures that weights for an image preset were trained with; the preset's own where they do not tell."""
    preset, found = image_preset(image), _image_facts(weights)
    shape = dict(found.facts)
    px = shape.pop("image_px", None)
    if px is None or found.tower != preset.tower or not _agrees(preset.options, shape):
        return preset.image_px
    cell_px = shape.get("patch_px", RESNET_STRIDE_PX)
    same_grid = preset.image_px // cell_px == px // cell_px
    return preset.image_px if same_grid else px


def describe_towers(weights: Weights) -> str:
    """The towers of weights in words, for error messages: preset names, or what their shapes tell."""
    image = _image_name(weights) or str(_image_facts(weights))
    text = _text_name(weights) or str(_text_facts(weights))
    return f"image tower {image} and text tower {text}"


def _image_name(weights: Weights) -> str | None:
    found = _image_facts(weights)
    px = found.facts.get("image_px")
    shape = {name: value for name, value in found.facts.items() if name != "image_px"}
    fitting = []
    for name in image_preset_names():
        preset = image_preset(name)
        if preset.tower == found.tower and _agrees(preset.options, shape):
            # of equal towers the nearest picture size
            fitting.append((abs(preset.image_px - px) if px else 0, name))
    return min(fitting)[1] if fitting else None


def _text_name(weights: Weights) -> str | None:
    found = _text_facts(weights)
    for name in text_preset_names():
        preset = text_preset(name)
        if preset.tower == found.tower and _agrees(preset.options, found.facts):
            return name
    return None


def _agrees(options: Facts, facts: Facts) -> bool:
    return all(options.get(name) == value for name, value in facts.items())


def _image_facts(weights: Weights) -> TowerFacts:
    if "visual.class_embedding" in weights and {"visual.conv1.weight", "visual.proj"} <= weights.keys():
        width, _, patch_px, _ = weights["visual.conv1.weight"].shape
        facts: dict[str, Any] = {"width": width, "patch_px": patch_px}
        facts["layers"] = _count(weights, r"visual\.transformer\.resblocks\.(\d+)\.")
        facts["embed_dim"] = weights["visual.proj"].shape[1]
        if "visual.positional_embedding" in weights:
            facts["image_px"] = patch_px * math.isqrt(len(weights["visual.positional_embedding"]) - 1)
        return TowerFacts("vit", facts)
    if {"visual.attnpool.c_proj.weight", "visual.conv3.weight"} <= weights.keys():
        facts = {"width": weights["visual.conv3.weight"].shape[0]}
        facts["layers"] = tuple(_count(weights, rf"visual\.layer{stage}\.(\d+)\.") for stage in range(1, 5))
        facts["embed_dim"] = weights["visual.attnpool.c_proj.weight"].shape[0]
        if "visual.attnpool.positional_embedding" in weights:
            facts["image_px"] = RESNET_STRIDE_PX * math.isqrt(
                len(weights["visual.attnpool.positional_embedding"]) - 1
            )
        return TowerFacts("resnet", facts)
    return TowerFacts(None, {})


def _text_facts(weights: Weights) -> TowerFacts:
    words = weights.get("bert.embeddings.word_embeddings.weight")
    if words is None:
        return TowerFacts(None, {})
    facts = {"width": words.shape[1], "vocab_size": words.shape[0]}
    facts["layers"] = _count(weights, r"bert\.encoder\.layer\.(\d+)\.")
    inner = weights.get("bert.encoder.layer.0.intermediate.dense.weight")
    if inner is not None:
        facts["mlp_width"] = inner.shape[0]
    return TowerFacts("roberta", facts)


def _count(names: Iterable[str], pattern: str) -> int:
    return len({match[1] for name in names if (match := re.match(pattern, name))})
