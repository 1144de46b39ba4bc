"""Number types of a run: which type the weights have, which the arithmetic, and the gradient scaler of fp16."""

from __future__ import annotations

import logging
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from cn_clip.errors import DeviceError

logger = logging.getLogger(__name__)


class Precision:
    """How one precision setting computes on one device."""

    def __init__(self, name: str, device: torch.device) -> None:
        self.device = device
        # fp32 but for the two settings that hold weights in the type they compute in
        self.weights_dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(name, torch.float32)
        self.autocast_dtype = _autocast_dtype(name, device)
        needs_scaler = name == "amp" and self.autocast_dtype is torch.float16
        self.scaler = torch.amp.GradScaler(device.type, enabled=needs_scaler)

    def autocast(self) -> AbstractContextManager[Any]:  # Any: what torch.autocast yields is not used
        """Context of a forward pass."""
        if self.autocast_dtype is None:
            return nullcontext()
        return torch.autocast(self.device.type, dtype=self.autocast_dtype)

    def backward(self, scalar: Tensor) -> None:
        """Backpropagate, scaled where fp16 gradients would underflow; call it outside `autocast`."""
        self.scaler.scale(scalar).backward()

    def unscale(self, optimizer: torch.optim.Optimizer) -> None:
        """Make the optimizer's gradients true ones, once a step."""
        self.scaler.unscale_(optimizer)

    def step(self, optimizer: torch.optim.Optimizer) -> None:
        """One optimizer step from the gradients that were unscaled."""
        self.scaler.step(optimizer)
        self.scaler.update()

    def skip(self) -> None:
        """No step: the gradients that were unscaled are not finite. fp16 goes on with a smaller scale."""
        self.scaler.update()

    def state_dict(self) -> dict[str, Any]:  # Any: torch's own state of the scaler
        return self.scaler.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:  # Any: as above
        if self.scaler.is_enabled() and state:
            self.scaler.load_state_dict(state)


def _autocast_dtype(name: str, device: torch.device) -> torch.dtype | None:
    if name == "fp16" and device.type == "cpu":
        raise DeviceError("train.precision is fp16, which needs a GPU: use amp_bf16 or fp32 on the CPU")
    if name == "amp_bf16":
        return torch.bfloat16
    if name == "amp":
        if device.type == "cuda":
            return torch.float16
        logger.info("Precision amp: bf16 autocast, since fp16 with a gradient scaler needs CUDA.")
        return torch.bfloat16
    return None
