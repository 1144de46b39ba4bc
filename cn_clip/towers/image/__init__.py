"""Image towers: the folder is the list that a preset's `tower` accepts.

Each module has a frozen dataclass `Options` and `build(options) -> ImageTower`. A tower with weights of the published
models keeps their key names below `visual.`. Shapes: B pictures, C H W picture, P patches, D tower width, E embedding.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import torch
from torch import Tensor, nn

from cn_clip.towers.sites import Sites


class ImageTower(Protocol):
    """What the two-tower model asks of an image tower, which is also an `nn.Module`."""

    @property
    def image_px(self) -> int:
        """Side of the square pictures it takes."""

    @property
    def dtype(self) -> torch.dtype:
        """Type that pictures are cast to."""

    @property
    def masks_patches(self) -> bool:
        """Whether it leaves out patches in training (FLIP); else it takes a mask ratio and does nothing with it."""

    @property
    def sites(self) -> Sites:
        """The places where it draws at random."""

    def __call__(self, images_BCHW: Tensor, mask_ratio: float = 0.0) -> Tensor:
        """Features [B, E]; in training, a share `mask_ratio` of the patches is left out where the tower can."""

    def patches(self, images_BCHW: Tensor) -> Tensor:
        """Patch tokens [B, P, D] as the pooling sees them, without a class token."""

    def blocks(self) -> list[nn.Module]:
        """The repeated modules, in order: what is recomputed, sharded or compiled one by one."""

    # of nn.Module, named here since a Protocol cannot inherit from it
    def parameters(self) -> Iterator[nn.Parameter]: ...
    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]: ...
    def modules(self) -> Iterator[nn.Module]: ...
