"""Every conversion of state-dict keys and shapes: the one place that knows other layouts than the model's own.

The model's layout is that of the published Chinese-CLIP checkpoints without `module.`. All functions but the public
`convert_state_dict` and `resize_pos_embed`, which change what they are given as the reference does, return a new dict.
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Weights = dict[str, Tensor]

_log = logging.getLogger(__name__)

_NOT_WEIGHTS = ("position_ids", "token_type_ids")  # constant buffers that older transformers versions saved
_FLASH = "Wqkv"


def to_plain_layout(weights: Weights) -> Weights:
    """The model's own keys: no `module.` prefix, no BERT pooler, no flash-attention layout, no constant buffers."""
    plain = {name.removeprefix("module."): tensor for name, tensor in weights.items()}
    plain = {name: tensor for name, tensor in plain.items() if not _is_left_out(name)}
    if any(_FLASH in name for name in plain):
        convert_state_dict(plain)
    return plain


def _is_left_out(name: str) -> bool:
    return name.startswith("bert.pooler.") or name.rpartition(".")[2] in _NOT_WEIGHTS


def image_weights(weights: Weights) -> Weights:
    """`visual.*` and `logit_scale` of an OpenAI-CLIP or Chinese-CLIP state dict."""
    plain = to_plain_layout(weights)
    return {name: t for name, t in plain.items() if name.startswith("visual.") or name == "logit_scale"}


def bert_weights(weights: Weights) -> Weights:
    """`bert.*` of a BERT file: prefix added, TensorFlow's gamma and beta renamed, pooler and task heads left out."""
    plain = {name.removeprefix("module."): tensor for name, tensor in weights.items()}
    if not any(name.startswith("bert.") for name in plain):
        plain = {f"bert.{name}": tensor for name, tensor in plain.items()}
    bert = {}
    for name, tensor in plain.items():
        name = re.sub(r"LayerNorm\.gamma$", "LayerNorm.weight", name)
        name = re.sub(r"LayerNorm\.beta$", "LayerNorm.bias", name)
        if name.startswith("bert.") and not name.startswith("bert.cls."):
            bert[name] = tensor
    return to_plain_layout(bert)


def convert_state_dict(state_dict: Weights) -> Weights:
    """Change the attention keys in place, from plain to flash-attention layout or back, and return the same dict.

    Each tower is converted by what it holds; keys may all begin with `module.`.
    """
    names = list(state_dict)
    if any(".attn.in_proj_" in name for name in names):
        _rename(state_dict, ".attn.in_proj_", f".attn.{_FLASH}.")
    elif any(f".attn.{_FLASH}." in name for name in names):
        _rename(state_dict, f".attn.{_FLASH}.", ".attn.in_proj_")
    for layer in _bert_layers(names):
        if f"{layer}.attention.self.query.weight" in state_dict:
            _fuse_bert_layer(state_dict, layer)
        elif f"{layer}.attention.self.{_FLASH}.weight" in state_dict:
            _split_bert_layer(state_dict, layer)
    return state_dict


def _rename(state_dict: Weights, old: str, new: str) -> None:
    for name in [name for name in state_dict if old in name]:
        state_dict[name.replace(old, new)] = state_dict.pop(name)


def _bert_layers(names: Iterable[str]) -> list[str]:
    found = (
        re.match(r"(?:module\.)?bert\.encoder\.layer\.\d+(?=\.attention\.self\.)", name) for name in names
    )
    return list(dict.fromkeys(match[0] for match in found if match))


def _fuse_bert_layer(state_dict: Weights, layer: str) -> None:
    for kind in ("weight", "bias"):
        parts = [
            state_dict.pop(f"{layer}.attention.self.{part}.{kind}") for part in ("query", "key", "value")
        ]
        state_dict[f"{layer}.attention.self.{_FLASH}.{kind}"] = torch.cat(parts)
        output = state_dict.pop(f"{layer}.attention.output.dense.{kind}")
        state_dict[f"{layer}.attention.self.out_proj.{kind}"] = output


def _split_bert_layer(state_dict: Weights, layer: str) -> None:
    for kind in ("weight", "bias"):
        parts = state_dict.pop(f"{layer}.attention.self.{_FLASH}.{kind}").chunk(3)
        for part, tensor in zip(("query", "key", "value"), parts, strict=True):
            state_dict[f"{layer}.attention.self.{part}.{kind}"] = tensor
        output = state_dict.pop(f"{layer}.attention.self.out_proj.{kind}")
        state_dict[f"{layer}.attention.output.dense.{kind}"] = output


POSITION_KEYS = (
    "visual.positional_embedding",
    "visual.attnpool.positional_embedding",
    "visual.trunk.pos_embed",
)
"""Of a ViT, of a ResNet, of a ViT of timm (which has a dimension of 1 before, and may have more tokens before the grid)."""


def is_for_training_only(name: str) -> bool:
    """Whether a weight serves training alone, and is left out of the published layout."""
    return name.startswith("teacher_projection.")


def resize_pos_embed(
    state_dict: Weights,
    model: nn.Module,
    interpolation: str = "bicubic",
    seq_dim: int = 1,
    prefix: str = "",
) -> None:
    """Stretch the position embedding of `state_dict` in place to the grid of `model`, where the two differ.

    The class token's row is kept, the grid is interpolated with aligned corners: the rule the published models were
    fine-tuned by. `seq_dim` is accepted and ignored, as in the reference.
    """
    own = model.state_dict()
    for key in POSITION_KEYS:
        old = state_dict.get(prefix + key)
        new = own.get(key, own.get(f"module.{key}"))
        if old is None or new is None or old.shape == new.shape or old.shape[-1] != new.shape[-1]:
            continue  # other widths are an error of the load that follows
        old_LD, length = old.reshape(-1, old.shape[-1]), new.shape[-2]
        new_side = math.isqrt(length)
        num_tokens = length - new_side**2
        old_side = math.isqrt(len(old_LD) - num_tokens)
        _log.info(
            "Resizing position embedding grid-size from (%d, %d) to (%d, %d)",
            old_side,
            old_side,
            new_side,
            new_side,
        )
        stretched_LD = resized_positions(old_LD, new_side, interpolation, num_tokens)
        state_dict[prefix + key] = stretched_LD.reshape(new.shape)


def resized_positions(
    embedding_LD: Tensor, side: int, interpolation: str = "bicubic", num_tokens: int = 1
) -> Tensor:
    """Class token and square grid [1 + s*s, D] to [1 + side*side, D]; `num_tokens` rows stand before the grid."""
    tokens_TD, grid_PD = embedding_LD[:num_tokens], embedding_LD[num_tokens:]
    old = math.isqrt(len(grid_PD))
    grid = grid_PD.reshape(1, old, old, -1).permute(0, 3, 1, 2)
    # half precision has no bicubic kernel on the CPU
    grid = F.interpolate(grid.float(), size=(side, side), mode=interpolation, align_corners=True).to(
        grid_PD.dtype
    )
    return torch.cat([tokens_TD, grid.permute(0, 2, 3, 1).reshape(side * side, -1)])


def to_ntuple(n: int, x: Any) -> tuple[Any, ...]:  # Any: whatever the caller repeats
    """The items of `x` when it can be iterated, else `n` copies of it."""
    return tuple(x) if isinstance(x, Iterable) else (x,) * n


def _repeater(n: int) -> Callable[[Any], tuple[Any, ...]]:
    return lambda x: to_ntuple(n, x)


to_1tuple, to_2tuple, to_3tuple, to_4tuple = (_repeater(n) for n in (1, 2, 3, 4))
