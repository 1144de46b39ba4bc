"""What every program trains in a benchmark of steps: towers by their presets, random pairs by their number, and their FLOPs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

PRESETS = Path(__file__).resolve().parents[2] / "cn_clip/clip/model_configs"
PAD_ID, CLS_ID, SEP_ID, FIRST_ID, NUM_IDS = 0, 101, 102, 200, 21128
"""Of the Chinese vocabulary."""
SHORTEST, LONGEST, CONTEXT_LENGTH = 5, 25, 52
"""Tokens of a caption with [CLS] and [SEP], and what the reference pads all of them to."""

Fields = dict[str, Any]
"""Arguments of `CLIP`, the reference's and ours; `Any`: numbers and names."""


def fields(image: str, text: str, layers: int | None = None) -> Fields:
    """Of two presets; `layers` in each tower instead of their own, for a quick look."""
    found: Fields = {}
    for preset in (image, text):
        found |= json.loads((PRESETS / f"{preset}.json").read_text())
    return found if layers is None else found | {"vision_layers": layers, "text_num_hidden_layers": layers}


def pairs(num: int, image_px: int, number: int) -> tuple[Tensor, Tensor]:
    """(num, 3, image_px, image_px) floats and (num, CONTEXT_LENGTH) padded tokens of batch `number`."""
    generator = torch.Generator().manual_seed(number)
    images = torch.randn(num, 3, image_px, image_px, generator=generator)
    tokens = torch.randint(FIRST_ID, NUM_IDS, (num, CONTEXT_LENGTH), generator=generator)
    lengths = torch.randint(SHORTEST, LONGEST + 1, (num,), generator=generator)
    places = torch.arange(CONTEXT_LENGTH)
    tokens[:, 0] = CLS_ID
    tokens[places == lengths[:, None] - 1] = SEP_ID
    tokens[places >= lengths[:, None]] = PAD_ID
    return images, tokens


def longest(tokens: Tensor) -> int:
    """Tokens of the longest caption."""
    return int(tokens.ne(PAD_ID).sum(1).max())


def group_shapes(tokens: Tensor, num_groups: int) -> list[tuple[int, int]]:
    """Captions and tokens of each group of like length."""
    lengths = tokens.ne(PAD_ID).sum(1).sort().values
    return [(len(group), int(group[-1])) for group in lengths.tensor_split(num_groups)]


def forward_flops(model: Fields, num_images: int, captions: Sequence[tuple[int, int]]) -> float:
    """Of the matrix products of one forward pass of both towers; `captions`: how many, and their padded length."""
    patch, width = model["vision_patch_size"], model["vision_width"]
    patches = (model["image_resolution"] // patch) ** 2
    total = 2.0 * num_images * patches * 3 * patch**2 * width
    total += model["vision_layers"] * _block(num_images, patches + 1, width, 4 * width)
    for number, length in captions:
        block = _block(number, length, model["text_hidden_size"], model["text_intermediate_size"])
        total += model["text_num_hidden_layers"] * block
    return total


def _block(batch: int, length: int, width: int, inner: int) -> float:
    return batch * length * (8.0 * width**2 + 4 * width * inner + 4 * length * width)
