import pytest
import torch

from cn_clip.errors import ConfigError
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


@pytest.mark.parametrize("image_px", [32, 48, 62, 64])
def test_the_last_grid_is_that_of_the_position_embedding(image_px: int) -> None:
    tower = ResNetTower(Options(image_px=image_px, width=8, layers=(1, 1, 1, 1), embed_dim=12))
    assert tower(torch.randn(2, 3, image_px, image_px)).shape == (2, 12)


@pytest.mark.parametrize("image_px", [16, 63])
def test_pictures_that_do_not_fit(image_px: int) -> None:
    with pytest.raises(ConfigError, match=f"{image_px} px do not fit a ResNet: set model.image_px"):
        ResNetTower(Options(image_px=image_px, width=8, layers=(1, 1, 1, 1)))
