"""Statistics of the hash: bounds are five standard deviations of what fair, independent numbers would show."""

from itertools import product

import pytest
import torch
from torch import Tensor

from cn_clip.towers.pair_random import (
    _counters,
    kept,
    mixed,
    number_of,
    pair_keys,
    part_keys,
    quantised,
    random_words,
    site_keys,
)


@pytest.fixture(scope="module")
def site_keys_sb() -> Tensor:
    """Four sites of 64 pairs whose own keys are as plain as can be."""
    return site_keys(torch.arange(64), torch.tensor([number_of(f"layer.{i}.dropout") for i in range(4)]))


@pytest.fixture(scope="module")
def words_sbld(site_keys_sb: Tensor) -> Tensor:
    return torch.stack([random_words(keys_B, (12, 96)) for keys_B in site_keys_sb])


def test_every_bit_is_fair(words_sbld: Tensor) -> None:
    bound = 5 * 0.5 / words_sbld.numel() ** 0.5
    for bit in range(32):
        assert abs(((words_sbld >> bit) & 1).double().mean().item() - 0.5) < bound, bit


def test_neighbours_of_every_kind_are_independent(words_sbld: Tensor) -> None:
    """Sites, pairs, tokens, channels: what one shows says nothing of the next."""
    for dim, shift in product(range(4), (4, 12, 20, 28)):
        nibbles = (words_sbld >> shift) & 15
        length = nibbles.shape[dim] - 1
        joint = nibbles.narrow(dim, 0, length) * 16 + nibbles.narrow(dim, 1, length)
        counts = torch.bincount(joint.flatten(), minlength=256).double()
        expected = joint.numel() / 256
        chi_square = ((counts - expected) ** 2 / expected).sum().item()
        assert chi_square < 255 + 5 * (2 * 255) ** 0.5, (dim, shift)


def test_the_two_halves_of_a_word_are_independent(words_sbld: Tensor) -> None:
    joint = (words_sbld & 15) * 16 + ((words_sbld >> 16) & 15)
    counts = torch.bincount(joint.flatten(), minlength=256).double()
    expected = joint.numel() / 256
    assert ((counts - expected) ** 2 / expected).sum().item() < 255 + 5 * (2 * 255) ** 0.5


@pytest.mark.parametrize("drop", [0.01, 0.1, 0.5, 0.9])
def test_keep_rate(site_keys_sb: Tensor, drop: float) -> None:
    """An arithmetic shift in the hash makes every second word positive, and the rate wrong."""
    masks = torch.stack([kept(keys_B, (12, 96), drop) for keys_B in site_keys_sb]).double()
    deviation = (drop * (1 - drop)) ** 0.5
    assert abs(masks.mean().item() - (1 - drop)) < 5 * deviation / masks.numel() ** 0.5
    for dims in ((2, 3), (0, 1), (0, 2, 3)):  # of each pair, element, and pair over all sites
        rates = masks.mean(dims)
        bound = 5.5 * deviation / (masks.numel() / rates.numel()) ** 0.5
        assert (rates - (1 - drop)).abs().max() < bound, dims


def test_the_probability_is_met_to_a_hundred_thousandth() -> None:
    assert quantised(0.1) == pytest.approx(0.1, abs=1 / 131072)
    assert (quantised(0.0), quantised(0.5), quantised(1.0)) == (0.0, 0.5, 1.0)


def test_a_shift_fills_with_zeros() -> None:
    """`>>` of torch would fill with the sign, and half of all keys would mix badly."""
    keys = mixed(torch.arange(-50_000, 50_000))
    assert len(keys.unique()) == len(keys)
    for bit in range(64):
        assert abs(((keys >> bit) & 1).double().mean().item() - 0.5) < 5 * 0.5 / len(keys) ** 0.5, bit


def test_mixing_is_splitmix64_s() -> None:
    """First outputs of the published generator for the seed 1234567, whose counter steps by the golden ratio."""
    golden = 0x9E3779B97F4A7C15
    states = [(1234567 + golden * i) % 2**64 for i in (1, 2, 3)]
    signed = torch.tensor([state - 2**64 if state >= 2**63 else state for state in states])
    found = [value % 2**64 for value in mixed(signed).tolist()]
    assert found == [6457827717110365317, 3203168211198807973, 9817491932198370423]


def test_each_bit_of_a_key_changes_half_of_the_words() -> None:
    flips = torch.tensor([1 << bit if bit < 63 else -(2**63) for bit in range(64)])
    site = torch.tensor([number_of("a")])
    words = random_words(site_keys(torch.tensor([12345]), site)[0], (32, 32))
    changed = random_words(site_keys(flips ^ 12345, site)[0], (32, 32)) ^ words
    for place in range(32):
        rates_64 = ((changed >> place) & 1).double().mean((1, 2))
        assert (rates_64 - 0.5).abs().max() < 5.5 * 0.5 / 32, place


def test_longer_dimensions_move_nothing() -> None:
    """Padding, more heads, more pairs: an element keeps its number."""
    keys = torch.arange(5) * 7
    whole = kept(keys, (4, 9, 13), 0.3)
    assert torch.equal(kept(keys[1:3], (4, 9, 13), 0.3), whole[1:3])
    assert torch.equal(kept(keys, (2, 5, 6), 0.3), whole[:, :2, :5, :6])
    assert torch.equal(kept(keys, (7,), 0.3), kept(keys, (8,), 0.3)[:, :7])


@pytest.mark.parametrize(
    "dims", [(512, 384), (197, 1536), (16, 512, 256), (12, 52, 26), (1024, 14, 7), (4, 16, 64, 32)]
)
def test_no_two_elements_share_a_number(dims: tuple[int, ...]) -> None:
    """Of one draw: features, attention weights, feature maps, windows."""
    counters = _counters(dims, torch.device("cpu"))
    assert counters.shape == dims
    assert len(counters.unique()) == counters.numel()


def test_parts_of_a_pair_have_keys_of_their_own() -> None:
    keys_B = torch.arange(100)
    parts = part_keys(keys_B, 3)
    assert parts.shape == (300,)
    assert len(torch.cat([parts, keys_B]).unique()) == 400
    assert torch.equal(part_keys(keys_B[40:50], 3), parts[120:150])
    assert torch.equal(part_keys(keys_B, 2).view(100, 2), parts.view(100, 3)[:, :2])


def test_keys_of_pairs_are_the_numbers_of_splitmix64() -> None:
    """The first three for the seed 1234567, as its other implementations give them."""
    expected = [6457827717110365317, 3203168211198807973, 9817491932198370423]
    assert [key % 2**64 for key in pair_keys(1234567, torch.arange(1, 4)).tolist()] == expected
