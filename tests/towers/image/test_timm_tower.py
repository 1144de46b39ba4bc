import json
from pathlib import Path

import pytest
import timm
import torch
from timm.models import save_for_hf
from torch import Tensor

from cn_clip.errors import ConfigError
from cn_clip.towers.image.timm_tower import Options, TimmTower

SIZES = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 3, "num_heads": 2}
KEYS = torch.arange(6) * 5


@pytest.fixture
def images() -> Tensor:
    return torch.randn(6, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def test_dropout_and_stochastic_depth_follow_the_keys(tmp_path: Path, images: Tensor) -> None:
    torch.manual_seed(0)
    drops = {"drop_path_rate": 0.5, "proj_drop_rate": 0.2, "pos_drop_rate": 0.2}
    save_for_hf(timm.create_model("vit_tiny_patch16_224", **SIZES), tmp_path, model_args={**SIZES, **drops})
    assert json.loads((tmp_path / "config.json").read_text())["model_args"]["drop_path_rate"] == 0.5
    tower = TimmTower(Options(folder=str(tmp_path), image_px=32)).train()
    with tower.sites.lent(KEYS):
        whole = tower(images)
    with tower.sites.lent(KEYS[3:5]):
        torch.testing.assert_close(tower(images[3:5]), whole[3:5], rtol=0, atol=1e-5)
    with tower.sites.lent(KEYS + 100):
        assert (tower(images) - whole).abs().max() > 0.01


@pytest.mark.parametrize(
    ("architecture", "image_px"),
    [("vit_tiny_patch16_224", 64), ("swin_tiny_patch4_window7_224", 64), ("test_resnet", 64)],
)
def test_another_picture_size(architecture: str, image_px: int) -> None:
    tower = TimmTower(Options(architecture=architecture, image_px=image_px, embed_dim=8)).eval()
    assert tower(torch.randn(1, 3, image_px, image_px)).shape == (1, 8)


def test_a_folder_s_position_embedding_is_stretched(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = timm.create_model("vit_tiny_patch16_224", num_classes=0, **SIZES)
    save_for_hf(model, tmp_path, model_args=SIZES)
    tower = TimmTower(Options(folder=str(tmp_path), image_px=48, embed_dim=8)).eval()
    assert tower.trunk.pos_embed.shape == (1, 1 + 6 * 6, 32)
    assert torch.equal(tower.trunk.pos_embed[0, 0], model.pos_embed[0, 0])
    assert torch.equal(tower.trunk.blocks[0].mlp.fc1.weight, model.blocks[0].mlp.fc1.weight)
    assert tower(torch.randn(1, 3, 48, 48)).shape == (1, 8)


def test_a_model_of_one_size_only() -> None:
    with pytest.raises(ConfigError, match="MlpMixer of timm cannot be resized from 224 px to 64 px"):
        TimmTower(Options(architecture="mixer_s32_224", image_px=64))
    assert TimmTower(Options(architecture="mixer_s32_224", image_px=224)).image_px == 224
