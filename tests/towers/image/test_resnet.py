import pytest
import torch

from cn_clip.towers.image.resnet import Options, ResNetTower


@pytest.fixture
def tower() -> ResNetTower:
    torch.manual_seed(0)
    return ResNetTower(Options(image_px=64, width=8, layers=(2, 1, 1, 1), embed_dim=12))


def test_shapes(tower: ResNetTower) -> None:
    images = torch.randn(3, 3, 64, 64)
    assert tower(images).shape == (3, 12)
    assert tower.patches(images).shape == (3, 4, 256)
    assert len(tower.blocks()) == 5


def test_heads_of_the_attention_pooling(tower: ResNetTower) -> None:
    assert tower.attnpool.num_heads == 8 * 32 // 64


def test_mask_ratio_changes_nothing(tower: ResNetTower) -> None:
    images = torch.randn(2, 3, 64, 64)
    tower.eval()
    assert torch.equal(tower(images, 0.5), tower(images))
