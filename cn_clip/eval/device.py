"""Choosing the device of an evaluation command."""

from __future__ import annotations

import torch

from cn_clip.errors import DeviceError


def pick_device(name: str) -> torch.device:
    """`auto` is CUDA when there is one, else the CPU; anything else is a torch device name, which must be usable."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:  # torch asserts when it was built without CUDA
        reason = str(error).splitlines()[0]
        raise DeviceError(
            f"--device {name} cannot be used here ({reason}): use --device cpu or auto"
        ) from error
    return device
