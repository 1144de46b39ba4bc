"""Weights in half precision and back. Which ones become half is a fact of the published models."""

from __future__ import annotations

import torch
from torch import nn


def convert_weights(model: nn.Module, dtype: torch.dtype = torch.float16) -> None:
    """Cast to `dtype`: convolutions, linear layers, attention, the two projections and the whole text tower.

    Norms, class token and position embedding of the image tower and `logit_scale` keep their type.
    """
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Linear | nn.MultiheadAttention):
            for parameter in module.parameters(recurse=False):
                _cast(parameter, dtype)
        elif name.rpartition(".")[2] == "bert":
            for parameter in module.parameters():
                _cast(parameter, dtype)
        for projection in ("text_projection", "proj"):
            if isinstance(parameter := module._parameters.get(projection), nn.Parameter):
                _cast(parameter, dtype)


def convert_models_to_fp32(model: nn.Module) -> None:
    """Cast every parameter, and its gradient where it has one, to fp32."""
    for parameter in model.parameters():
        _cast(parameter, torch.float32)
        if parameter.grad is not None:
            parameter.grad.data = parameter.grad.data.float()


def _cast(parameter: nn.Parameter, dtype: torch.dtype) -> None:
    parameter.data = parameter.data.to(dtype)  # in place, so that an optimizer keeps hold of it
