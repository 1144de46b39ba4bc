import pytest
import torch

from cn_clip.errors import ConfigError
from cn_clip.towers.image.vit import KeepPatches, Options, VitTower
from cn_clip.towers.sites import Site

TINY = Options(image_px=32, patch_px=8, width=32, layers=2, head_width=16, embed_dim=12)


@pytest.fixture
def tower() -> VitTower:
    torch.manual_seed(0)
    return VitTower(TINY)


def test_shapes(tower: VitTower) -> None:
    images = torch.randn(3, 3, 32, 32)
    assert tower(images).shape == (3, 12)
    assert tower.patches(images).shape == (3, 16, 32)
    assert len(tower.blocks()) == 2
    assert tower.image_px == 32


def test_head_width_gives_the_number_of_heads(tower: VitTower) -> None:
    assert [block.attn.num_heads for block in tower.blocks()] == [2, 2]


@pytest.mark.parametrize("keyed", [False, True])
@pytest.mark.parametrize(("ratio", "kept"), [(0.5, 24), (0.3, 34), (0.99, 0), (0.0, 49)])
def test_masking_keeps_the_class_token_and_whole_patches(ratio: float, kept: int, keyed: bool) -> None:
    tokens = torch.arange(50.0).view(1, 50, 1).expand(2, 50, 4).contiguous()
    keep = KeepPatches(Site()).train()
    keep.ratio = ratio
    keep.site.keys_B = torch.tensor([3, 4]) if keyed else None
    left = keep(tokens)[:, :, 0]
    assert left.shape == (2, 1 + kept)  # int(49 * (1 - ratio)), rounded down
    for row in left.tolist():
        assert row[0] == 0
        assert len(set(row)) == len(row), "no patch twice"
        assert set(row[1:]) <= set(map(float, range(1, 50)))


def test_masking_is_off_in_eval_mode(tower: VitTower) -> None:
    images = torch.randn(2, 3, 32, 32)
    tower.train()
    assert not torch.equal(tower(images, 0.5), tower(images))
    tower.eval()
    assert torch.equal(tower(images, 0.5), tower(images))


def test_a_masked_call_leaves_no_mask_behind(tower: VitTower) -> None:
    images = torch.randn(2, 3, 32, 32)
    tower.train()
    before = tower(images)
    tower(images, 0.5)
    assert torch.equal(tower(images), before)
    assert tower.patches(images).shape[1] == 16


def test_state_dict_holds_nothing_but_the_published_names(tower: VitTower) -> None:
    names = {name.split(".")[0] for name in tower.state_dict()}
    assert names == {
        "class_embedding",
        "positional_embedding",
        "proj",
        "conv1",
        "ln_pre",
        "transformer",
        "ln_post",
    }
    block = {
        name.split(".", 3)[3] for name in tower.state_dict() if name.startswith("transformer.resblocks.0.")
    }
    assert "attn.in_proj_weight" in block and "mlp.c_proj.bias" in block


def test_activation() -> None:
    torch.manual_seed(0)
    quick = VitTower(TINY)
    exact = VitTower(Options(**{**vars(TINY), "activation": "gelu"}))
    exact.load_state_dict(quick.state_dict())
    images = torch.randn(1, 3, 32, 32)
    assert not torch.allclose(quick(images), exact(images), atol=1e-5)


def test_a_picture_s_key_decides_which_patches_stay(tower: VitTower) -> None:
    images = torch.randn(6, 3, 32, 32)
    keys = torch.tensor([11, 12, 13, 14, 15, 16])
    tower.train()
    with tower.sites.lent(keys):
        whole = tower(images, 0.5)
    with tower.sites.lent(keys[2:4]):
        torch.testing.assert_close(tower(images[2:4], 0.5), whole[2:4], rtol=0, atol=1e-6)
    with tower.sites.lent(keys + 100):
        assert not torch.allclose(tower(images, 0.5), whole, atol=1e-3)


def test_every_patch_is_kept_as_often_as_any_other() -> None:
    keep = KeepPatches(Site()).train()
    keep.ratio = 0.5
    keep.site.keys_B = torch.arange(4000)
    tokens = torch.arange(17.0).view(1, 17, 1).expand(4000, 17, 1)
    counts = torch.bincount(keep(tokens)[:, 1:].long().flatten(), minlength=17)
    assert counts[0] == 0
    # 8 of 16, standard deviation sqrt(4000 / 4) = 32
    assert (counts[1:] - 2000).abs().max() < 5 * 32


def test_pictures_that_do_not_make_whole_patches() -> None:
    with pytest.raises(ConfigError, match="30 px cannot be cut into patches of 8 px: set model.image_px"):
        VitTower(Options(**{**vars(TINY), "image_px": 30}))
