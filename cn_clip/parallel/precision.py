"""Number types of a run: which type the weights have, which the arithmetic, and the loss scale of fp16."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from cn_clip.errors import DeviceError

logger = logging.getLogger(__name__)

GROWTH, BACKOFF, GROWTH_INTERVAL = 2.0, 0.5, 2000  # those of torch.amp.GradScaler


class LossScale:
    """Factor that keeps fp16 gradients above zero (arXiv:1710.03740, section 3.2); a power of two, so it rounds nothing.

    The rule and the state are those of `torch.amp.GradScaler`, but for who decides: an engine knows the norm of all
    ranks' gradients, where the scaler looks at those of one rank, which may be a shard.
    """

    def __init__(self, enabled: bool) -> None:
        self.enabled = enabled
        self.value = 2.0**16 if enabled else 1.0
        self._applied_in_a_row = 0

    def update(self, applied: bool) -> None:
        """After each step: smaller where its gradients were not finite, larger after a long row of applied ones."""
        if not self.enabled:
            return
        self._applied_in_a_row = self._applied_in_a_row + 1 if applied else 0
        if not applied:
            self.value *= BACKOFF
        elif self._applied_in_a_row == GROWTH_INTERVAL:
            self.value *= GROWTH
            self._applied_in_a_row = 0

    def state_dict(self) -> dict[str, Any]:  # Any: floats and whole numbers, as the scaler keeps them
        if not self.enabled:
            return {}
        return {
            "scale": self.value, "growth_factor": GROWTH, "backoff_factor": BACKOFF,
            "growth_interval": GROWTH_INTERVAL, "_growth_tracker": self._applied_in_a_row,
        }  # fmt: skip

    def load_state_dict(self, state: Mapping[str, Any]) -> None:  # Any: as above
        """Go on from such a state; an empty one, of a run without a scale, changes nothing."""
        if self.enabled and state:
            self.value, self._applied_in_a_row = float(state["scale"]), int(state["_growth_tracker"])


class Precision:
    """How one precision setting computes on one device."""

    def __init__(self, name: str, device: torch.device) -> None:
        self.name, self.device = name, device
        # fp32 but for the two settings that hold weights in the type they compute in
        self.weights_dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(name, torch.float32)
        self.autocast_dtype = _autocast_dtype(name, device)
        self.loss_scale = LossScale(enabled=name == "amp" and self.autocast_dtype is torch.float16)

    def autocast(self) -> AbstractContextManager[Any]:  # Any: what torch.autocast yields is not used
        """Context of a forward pass."""
        if self.autocast_dtype is None:
            return nullcontext()
        return torch.autocast(self.device.type, dtype=self.autocast_dtype)

    def backward(self, scalar: Tensor) -> None:
        """Backpropagate, scaled where fp16 gradients would underflow; call it outside `autocast`."""
        (scalar * self.loss_scale.value if self.loss_scale.enabled else scalar).backward()

    def state_dict(self) -> dict[str, Any]:  # Any: see LossScale
        return self.loss_scale.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:  # Any: as above
        self.loss_scale.load_state_dict(state)


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
