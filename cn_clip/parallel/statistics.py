"""BatchNorm's running statistics: every rank takes over those of the main rank, as torch's DDP has it.

They enter no training step, only validation and checkpoints; so they are sent once a step, all in one message.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm  # the common base of BatchNorm2d and SyncBatchNorm

from cn_clip.parallel.ranks import Ranks


def share_statistics(model: nn.Module, ranks: Ranks) -> None:
    """Averages of the BatchNorm layers in training, those of the main rank on all. Collective where there are any."""
    moving = [
        tensor
        for module in model.modules()
        if isinstance(module, _BatchNorm) and module.training
        for tensor in (module.running_mean, module.running_var)
        if tensor is not None
    ]
    if ranks.world_size == 1 or not moving:
        return
    flat = torch.cat([tensor.flatten() for tensor in moving])
    dist.broadcast(flat, src=0)
    for tensor, values in zip(moving, flat.split([tensor.numel() for tensor in moving]), strict=True):
        tensor.copy_(values.view_as(tensor))
