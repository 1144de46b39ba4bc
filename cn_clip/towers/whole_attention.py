"""Attention of a ViT's block that multiplies its tokens in the order in which they lie.

`nn.MultiheadAttention` turns (B, L, W) into (L, B, W) first. torch then folds no weight that needs no gradient into one product:
it multiplies each of the L positions by itself, and on a CPU in bf16 copies the weights for each (a frozen ViT-B/32 took 9 times
as long, and its memory). Parameters and state-dict keys are that class's.

Shapes: B pictures, L tokens, H heads, D channels of a head, W channels of a token.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cn_clip.towers.cpu_attention import attend


class WholeAttention(nn.MultiheadAttention):
    """Self-attention with the weights of another one, which it equals up to rounding."""

    def __init__(self, other: nn.MultiheadAttention) -> None:
        assert other.batch_first and other.in_proj_weight is not None and other.dropout == 0
        with torch.device("meta"):  # what it draws would be thrown away
            super().__init__(other.embed_dim, other.num_heads, batch_first=True)
        self.in_proj_weight, self.in_proj_bias = other.in_proj_weight, other.in_proj_bias
        self.out_proj = other.out_proj

    def forward(  # type: ignore[override]  # of the many arguments, those that a block gives
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        need_weights: bool = False,
        attn_mask: Tensor | None = None,
    ) -> tuple[Tensor, None]:
        """(B, L, W) of tokens (B, L, W) given three times."""
        query_BHLD, key_BHLD, value_BHLD = self.heads(query).permute(2, 0, 3, 1, 4).unbind()
        mixed_BHLD = attend(query_BHLD, key_BHLD, value_BHLD, attn_mask)
        return self.out_proj(mixed_BHLD.transpose(1, 2).flatten(2)), None

    def heads(self, tokens_BLW: Tensor) -> Tensor:
        """(B, L, 3, H, D) queries, keys and values of the tokens among themselves."""
        projected = F.linear(tokens_BLW, self.in_proj_weight, self.in_proj_bias)
        return projected.unflatten(-1, (3, self.num_heads, self.head_dim))


def take_over_attentions(blocks: Iterable[nn.Module]) -> None:
    """Put a `WholeAttention` in the place of the attention that a block of open_clip's ViT calls `attn`."""
    for block in blocks:
        attention = dict(block.named_children()).get("attn")
        if isinstance(attention, nn.MultiheadAttention):
            block.register_module("attn", WholeAttention(attention).train(attention.training))
