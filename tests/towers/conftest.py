"""A small ViT and pictures for it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from cn_clip.towers.image.vit import Options, VitTower


@pytest.fixture
def tower() -> VitTower:
    torch.manual_seed(0)
    return VitTower(Options(image_px=32, patch_px=8, width=32, layers=2, head_width=16, embed_dim=12))


@pytest.fixture
def images() -> Tensor:
    return torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))
