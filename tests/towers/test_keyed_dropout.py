import copy

import pytest
import torch
from timm.layers import DropPath
from torch import Tensor, nn

from cn_clip.towers.image.timm_tower import KeyedDropPath
from cn_clip.towers.keyed_dropout import KeyedDropout, dropped, key_dropout
from cn_clip.towers.sites import Site, Sites


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)
        self.parts = nn.Sequential(nn.Dropout(0.5), nn.Dropout(0.25))

    def forward(self, x: Tensor) -> Tensor:
        return self.parts(self.linear(x))


class Tower(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.sites = Sites()
        self.layers = nn.ModuleList(Block() for _ in range(3))
        key_dropout(self)

    def blocks(self) -> list[nn.Module]:
        return list(self.layers)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


@pytest.fixture
def tower() -> Tower:
    torch.manual_seed(0)
    return Tower().train()


INPUT = torch.randn(6, 5, 8, generator=torch.Generator().manual_seed(1))
KEYS = torch.tensor([5, 6, 7, 8, 9, 10])


def test_values_are_kept_or_zero_and_scaled() -> None:
    out = dropped(torch.ones(64, 50, 40), torch.arange(64), 0.2)
    zero, kept = out.unique().tolist()
    assert (zero, kept) == (0.0, pytest.approx(1.25, rel=1e-4))
    assert out.mean().item() == pytest.approx(1, abs=5 * 0.5 / out.numel() ** 0.5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_type_stays(dtype: torch.dtype) -> None:
    assert dropped(torch.ones(2, 3, dtype=dtype), torch.arange(2), 0.1).dtype == dtype


def test_dropping_all() -> None:
    assert dropped(torch.ones(2, 30), torch.arange(2), 1.0).sum() == 0


def test_gradients_pass_where_values_do() -> None:
    values = torch.ones(4, 10, requires_grad=True)
    out = dropped(values, torch.arange(4), 0.5)
    out.sum().backward()
    assert torch.equal(values.grad, out)


def test_every_dropout_of_a_tower_is_replaced_once(tower: Tower) -> None:
    kinds = [type(m) for m in tower.modules() if isinstance(m, nn.Dropout)]
    assert kinds == [KeyedDropout] * 6
    assert len(tower.sites) == 6
    before = list(tower.modules())
    key_dropout(tower)
    assert list(map(id, tower.modules())) == list(map(id, before))
    assert len(tower.sites) == 6


def test_dropout_added_later_gets_a_site(tower: Tower) -> None:
    tower.layers[1].register_module("lora_dropout", nn.Dropout(0.1))
    key_dropout(tower)
    assert isinstance(tower.layers[1].lora_dropout, KeyedDropout)
    with tower.sites.lent(KEYS):
        assert tower.layers[1].lora_dropout.site.keys_B is not None


def test_sites_go_by_their_names_not_by_their_order() -> None:
    one, other = Sites(), Sites()
    a, b = one.add("a"), one.add("b")
    other_b = other.add("b")
    with one.lent(KEYS), other.lent(KEYS):
        assert torch.equal(b.keys_B, other_b.keys_B)
        assert not torch.equal(a.keys_B, b.keys_B)
    assert a.keys_B is None and b.keys_B is None


def test_a_pair_meets_the_same_mask_in_any_company(tower: Tower) -> None:
    with tower.sites.lent(KEYS):
        whole = tower(INPUT)
    with tower.sites.lent(KEYS[[4, 1]]):
        torch.testing.assert_close(tower(INPUT[[4, 1]]), whole[[4, 1]], rtol=0, atol=1e-6)


def test_layers_differ(tower: Tower) -> None:
    ones = torch.ones(6, 5, 8)
    with tower.sites.lent(KEYS):
        masks = [layer.parts[0](ones) for layer in tower.layers]
    assert not torch.equal(masks[0], masks[1]) and not torch.equal(masks[1], masks[2])


@pytest.mark.parametrize("keys", [None, KEYS[:2]])
def test_without_the_pairs_keys_it_is_torch_s_own(tower: Tower, keys: Tensor | None) -> None:
    """None, or features that do not lie pair by pair."""
    stock = copy.deepcopy(tower)
    for layer in stock.layers:
        layer.parts = nn.Sequential(nn.Dropout(0.5), nn.Dropout(0.25))
    with tower.sites.lent(keys):
        torch.manual_seed(3)
        ours = tower(INPUT)
    torch.manual_seed(3)
    assert torch.equal(ours, stock(INPUT))


def test_nothing_is_dropped_in_eval_mode(tower: Tower) -> None:
    tower.eval()
    plain = tower(INPUT)
    with tower.sites.lent(KEYS):
        assert torch.equal(tower(INPUT), plain)


def test_keys_are_given_back_after_an_error(tower: Tower) -> None:
    site = tower.layers[0].parts[0].site
    with pytest.raises(ZeroDivisionError), tower.sites.lent(KEYS):
        assert site.keys_B is not None
        1 / 0  # noqa: B018  # the error itself is the point
    assert site.keys_B is None


def test_what_is_remembered_is_what_was_lent_then(tower: Tower) -> None:
    site = tower.layers[0].parts[0].site
    with tower.sites.lent(KEYS):
        first, remembered = site.keys_B, tower.sites.remember()
    with tower.sites.lent(KEYS + 1):
        with remembered:
            assert torch.equal(site.keys_B, first)
        assert not torch.equal(site.keys_B, first)
    assert site.keys_B is None


def test_a_copy_has_sites_of_its_own(tower: Tower) -> None:
    other = copy.deepcopy(tower)
    with tower.sites.lent(KEYS):
        assert other.layers[0].parts[0].site.keys_B is None
    with other.sites.lent(KEYS):
        assert other.layers[0].parts[0].site.keys_B is not None
        assert tower.layers[0].parts[0].site.keys_B is None
    remember = vars(other.layers[0])["remember"]
    assert remember.__self__ is other.sites


@pytest.mark.parametrize("scale_by_keep", [True, False])
def test_stochastic_depth_leaves_out_whole_pictures(scale_by_keep: bool) -> None:
    path = KeyedDropPath(DropPath(0.5, scale_by_keep), Site()).train()
    path.site.keys_B = torch.arange(400)
    features = torch.ones(400, 3, 2)
    out = path(features)
    gain = 2.0 if scale_by_keep else 1.0
    assert set(out.unique().tolist()) == {0.0, gain}
    assert (out.flatten(1).min(1).values == out.flatten(1).max(1).values).all()
    assert out[:, 0, 0].mean().item() == pytest.approx(gain / 2, abs=5 * gain / 2 / 20)
    path.site.keys_B = torch.arange(400)[100:110]
    assert torch.equal(path(features[:10]), out[100:110])
    path.eval()
    assert torch.equal(path(features), features)
