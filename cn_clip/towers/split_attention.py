"""Attention with a linear layer for each of query, key and value, in the place of `nn.MultiheadAttention`.

That one keeps the three in one matrix and never calls a layer for them, so there is nothing an adapter could stand beside.
Shapes: B pictures, L tokens, H heads, D channels of a head, W channels of a token.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from cn_clip.towers.cpu_attention import attend

PROJECTIONS = ("q_proj", "k_proj", "v_proj")
"""Layers of the split attention, in the order in which they stand in the whole one's matrix."""


class SplitAttention(nn.Module):
    """Self-attention with the weights of a whole one, which it equals up to rounding."""

    def __init__(self, whole: nn.MultiheadAttention) -> None:
        super().__init__()
        assert whole.batch_first and whole.in_proj_weight is not None and whole.dropout == 0
        weights, biases = whole.in_proj_weight.chunk(3), whole.in_proj_bias.chunk(3)
        self.num_heads, self.head_dim = whole.num_heads, whole.head_dim
        self.q_proj, self.k_proj, self.v_proj = map(_linear, weights, biases)
        self.out_proj = _linear(whole.out_proj.weight, whole.out_proj.bias)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        need_weights: bool = False,
        attn_mask: Tensor | None = None,
    ) -> tuple[Tensor, None]:
        """(B, L, W) of tokens (B, L, W) given three times; the arguments of `nn.MultiheadAttention`."""
        heads_BHLD = (
            layer(tokens_BLW).unflatten(-1, (self.num_heads, self.head_dim)).transpose(1, 2)
            for layer, tokens_BLW in ((self.q_proj, query), (self.k_proj, key), (self.v_proj, value))
        )
        query_BHLD, key_BHLD, value_BHLD = heads_BHLD
        mixed_BHLD = attend(query_BHLD, key_BHLD, value_BHLD, attn_mask)
        return self.out_proj(mixed_BHLD.transpose(1, 2).flatten(2)), None

    def heads(self, tokens_BLW: Tensor) -> Tensor:
        """(B, L, 3, H, D) queries, keys and values of the tokens among themselves, for a kernel that takes all in one."""
        projected = [layer(tokens_BLW) for layer in (self.q_proj, self.k_proj, self.v_proj)]
        return torch.stack(projected, dim=2).unflatten(-1, (self.num_heads, self.head_dim))


def _linear(weight: Tensor, bias: Tensor) -> nn.Linear:
    with torch.device("meta"):  # what it draws would be thrown away
        layer = nn.Linear(weight.shape[1], weight.shape[0])
    layer.weight, layer.bias = (nn.Parameter(tensor.detach().clone()) for tensor in (weight, bias))
    return layer


def split_attentions(blocks: Iterable[nn.Module]) -> None:
    """Replace the whole attention that a block of open_clip's ViT calls `attn`, in each block that has one."""
    for block in blocks:
        attention = dict(block.named_children()).get("attn")
        if isinstance(attention, nn.MultiheadAttention):
            block.register_module("attn", SplitAttention(attention).train(attention.training))


def joined(weights: Mapping[str, Tensor], attention: str) -> dict[str, Tensor]:
    """State dict with the split attention of this name under the names and in the shapes of the whole one."""
    found = dict(weights)
    for kind in ("weight", "bias"):
        parts = [found.pop(f"{attention}.{projection}.{kind}") for projection in PROJECTIONS]
        found[f"{attention}.in_proj_{kind}"] = torch.cat(parts)
    return found
