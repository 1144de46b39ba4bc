"""Attention of tokens among themselves: SDPA, but for training on the CPU in bf16, where products of matrices are quicker.

torch's flash kernel for the CPU multiplies small tiles; on a processor with AVX512-BF16 its backward pass took three times as
long as the products below. They keep what it keeps in fp32, the logits, and round what it rounds, the weights.
Shapes: B pictures, H heads, L tokens, D channels of a head, M = B * H.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

LONGEST = 320
"""Tokens up to which the weights are kept: 2 * H * L^2 bytes a picture and layer, beside the 8 * L * H * D of the rest."""


def attend(
    query_BHLD: Tensor, key_BHLD: Tensor, value_BHLD: Tensor, attn_mask: Tensor | None = None
) -> Tensor:
    """(B, H, L, D) of three like it: scaled dot-product attention (arXiv:1706.03762), with a mask that fits (B, H, L, L)."""
    is_quicker = (
        query_BHLD.device.type == "cpu"
        and query_BHLD.dtype == torch.bfloat16
        and query_BHLD.shape[2] <= LONGEST
        and attn_mask is None
        and query_BHLD.requires_grad
        and not (torch.compiler.is_compiling() or torch.jit.is_tracing())
    )
    if not is_quicker:
        return F.scaled_dot_product_attention(query_BHLD, key_BHLD, value_BHLD, attn_mask=attn_mask)
    heads_MLD = (heads_BHLD.flatten(0, 1) for heads_BHLD in (query_BHLD, key_BHLD, value_BHLD))
    mixed_MLD: Tensor = _Products.apply(*heads_MLD)
    return mixed_MLD.unflatten(0, query_BHLD.shape[:2])


class _Products(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, query_MLD: Tensor, key_MLD: Tensor, value_MLD: Tensor
    ) -> Tensor:  # Any: torch's context
        with torch.autocast("cpu", enabled=False):  # it would round the logits
            scaled_MLD = query_MLD.float() * query_MLD.shape[-1] ** -0.5
            logits_MLL = torch.bmm(scaled_MLD, key_MLD.float().transpose(1, 2))
            weights_MLL = logits_MLL.softmax(-1).to(value_MLD.dtype)
            ctx.save_for_backward(query_MLD, key_MLD, value_MLD, weights_MLL)
            return torch.bmm(weights_MLL, value_MLD)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, up_MLD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        query_MLD, key_MLD, value_MLD, weights_MLL = ctx.saved_tensors
        up_weights_MLL = torch.bmm(up_MLD, value_MLD.transpose(1, 2))
        up_logits_MLL = torch.ops.aten._softmax_backward_data(
            up_weights_MLL, weights_MLL, -1, weights_MLL.dtype
        ).mul_(query_MLD.shape[-1] ** -0.5)
        return (
            torch.bmm(up_logits_MLL, key_MLD),
            torch.bmm(up_logits_MLL.transpose(1, 2), query_MLD),
            torch.bmm(weights_MLL.transpose(1, 2), up_MLD),
        )
