"""Attention of transformers' models whose weights are dropped by the keys of the pairs.

Where nothing is dropped by pair it is SDPA, as before. Shapes: B pairs, H heads, Q queries, K keys of the attention,
D channels of a head.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from cn_clip.towers.keyed_dropout import dropped
from cn_clip.towers.sites import Site, Sites

KEYED_ATTENTION = "pair_keyed"
"""Name of `attend` among transformers' attention functions."""


def key_attention(model: PreTrainedModel, sites: Sites) -> None:
    """Let the attentions of a transformers model that takes SDPA drop weights by pair; others stay as they are."""
    if model.config._attn_implementation != "sdpa":
        return
    AttentionInterface.register(KEYED_ATTENTION, attend)
    AttentionMaskInterface.register(KEYED_ATTENTION, sdpa_mask)
    model.set_attn_implementation(KEYED_ATTENTION)
    for name, module in model.named_modules():
        settings = vars(module)
        is_plain = settings.get("is_causal") is False and settings.get("num_key_value_groups", 1) == 1
        if is_plain and "Attention" in type(module).__name__:
            settings["site"] = sites.add(f"{name}.weights")


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **options: Any,  # Any: what models hand to their attention functions besides
) -> tuple[Tensor, Tensor | None]:
    """Attention (B, Q, H, D) of query, key and value (B, H, Q or K, D): SDPA where nothing is dropped by pair."""
    site: Site | None = vars(module).get("site")
    keys_B = None if site is None else site.keys_B
    is_plain = all(options.get(name) is None for name in ("position_bias", "softcap", "cache"))
    if dropout == 0 or keys_B is None or len(keys_B) != len(query) or not is_plain:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **options
        )
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    logits_BHQK = query @ key.transpose(2, 3) * scaling
    if attention_mask is not None and attention_mask.dtype == torch.bool:
        logits_BHQK = logits_BHQK.masked_fill(~attention_mask, torch.finfo(logits_BHQK.dtype).min)
    elif attention_mask is not None:
        logits_BHQK = logits_BHQK + attention_mask
    weights_BHQK = dropped(logits_BHQK.softmax(-1), keys_B, dropout)
    return (weights_BHQK.to(value.dtype) @ value).transpose(1, 2).contiguous(), None
