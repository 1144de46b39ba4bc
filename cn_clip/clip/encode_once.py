"""Pictures and captions that come several times in a batch, found so that each is encoded once.

Exact only where a tower makes the same feature of the same input: see `is_repeatable`. Shapes: B pairs, U different ones
among them, L tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from timm.layers import PatchDropout
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm  # the common base of BatchNorm2d and SyncBatchNorm
from torch.nn.modules.dropout import _DropoutNd  # of all dropouts


@dataclass(frozen=True)
class Distinct:
    """The different ones among B, in the order in which they first come."""

    first_U: Tensor
    """Where each comes first: what is to be encoded."""
    rows_B: Tensor
    """Which of the U each one is: `image_rows` or `text_rows` of `CLIP.forward`."""

    @property
    def saves(self) -> bool:
        """Whether anything comes twice."""
        return len(self.first_U) < len(self.rows_B)


def distinct_rows(tokens_BL: Tensor) -> Distinct:
    """Of captions by their token ids."""
    return _distinct(torch.unique(tokens_BL, dim=0, return_inverse=True)[1])


def distinct_ids(ids_B: Tensor) -> Distinct:
    """Of pictures by their ids."""
    return _distinct(torch.unique(ids_B, return_inverse=True)[1])


def _distinct(sorted_rows_B: Tensor) -> Distinct:
    places_B = torch.arange(len(sorted_rows_B), device=sorted_rows_B.device)
    num_distinct = int(sorted_rows_B.max()) + 1 if len(sorted_rows_B) else 0
    first = places_B.new_full((num_distinct,), len(places_B))
    first.scatter_reduce_(0, sorted_rows_B, places_B, "amin")
    order = first.argsort()
    return Distinct(first_U=first[order], rows_B=order.argsort()[sorted_rows_B])


def is_repeatable(tower: nn.Module, mask_ratio: float = 0.0) -> bool:
    """Whether in its present mode a tower makes the same feature of the same input, whatever else is in the batch.

    Not with dropout, masked patches, or BatchNorm that goes by the batch. `mask_ratio` is that of an image tower.
    """
    return not (tower.training and mask_ratio > 0) and not any(map(_depends, tower.modules()))


def _depends(module: nn.Module) -> bool:
    if isinstance(module, _BatchNorm):
        return module.training or not module.track_running_stats
    if isinstance(module, _DropoutNd):
        return module.training and module.p > 0
    if isinstance(module, PatchDropout):
        return module.training and module.prob > 0
    # of other libraries: stochastic depth, and models that drop without a module for it
    shares = [value for name, value in vars(module).items() if "drop" in name]
    return module.training and any(isinstance(share, float) and share > 0 for share in shares)
