"""QuickGELU of OpenAI CLIP, x * sigmoid(1.702 x), that keeps its input alone for the backward pass."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

SLOPE = 1.702


class QuickGELU(nn.Module):
    """Equal to the bit to the formula, with one tensor kept in the place of two, and two passes back in the place of five."""

    def forward(self, x: Tensor) -> Tensor:
        """Of any shape and number type, which stay."""
        if not x.requires_grad or torch.compiler.is_compiling() or torch.jit.is_tracing():
            return x * torch.sigmoid(SLOPE * x)
        result: Tensor = _QuickGELU.apply(x)
        return result


class _QuickGELU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:  # Any: torch's context
        ctx.save_for_backward(x)
        return (SLOPE * x).sigmoid_().mul_(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, up: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        # x * sigmoid(a x) = silu(a x) / a, whose slope is that of silu at a x
        slope: Tensor = torch.ops.aten.silu_backward(up, SLOPE * x)
        return slope
