"""Each quick operation against timm's own, by PIL."""

from __future__ import annotations

import random

import numpy as np
import pytest
from PIL import Image
from timm.data import auto_augment
from timm.data.auto_augment import auto_augment_transform

from cn_clip.clip import quick_operations
from cn_clip.clip.quick_operations import as_array, quick_policies

OPTIONS = {"fillcolor": (128, 100, 7), "resample": Image.Resampling.BICUBIC}


@pytest.fixture(params=[(48, 48), (30, 51)])
def picture(request: pytest.FixtureRequest) -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (12, 12, 3), dtype=np.uint8)
    whole = Image.fromarray(pixels).resize(request.param, Image.Resampling.BICUBIC)
    # plain black and white, where a sum just below 255 must not turn into 254
    whole.paste((255, 255, 255), (0, 0, 15, 15))
    whole.paste((0, 0, 0), (15, 0, 25, 15))
    return whole


@pytest.mark.parametrize("name", ["rotate", "shear_x"])
@pytest.mark.parametrize("magnitude", [27.0, -24.0, 9.0, 0.15, -0.15])
def test_moves(name: str, magnitude: float, picture: Image.Image) -> None:
    theirs = np.asarray(getattr(auto_augment, name)(picture, magnitude, **dict(OPTIONS))).astype(int)
    ours = getattr(quick_operations, name)(np.array(picture), magnitude, **OPTIONS)
    off = np.abs(ours.astype(int) - theirs)
    assert ours.dtype == np.uint8
    assert off.max() <= 1 and (off > 0).mean() < 0.01


@pytest.mark.parametrize(
    ("name", "magnitude"),
    [("posterize", bits) for bits in (1, 4, 6, 8)] + [("solarize", level) for level in (0, 1, 100, 255, 256)],
)
def test_recolourings(name: str, magnitude: int, picture: Image.Image) -> None:
    theirs = getattr(auto_augment, name)(picture, magnitude)
    for given in (picture, np.array(picture)):
        ours = getattr(quick_operations, name)(given, magnitude, **OPTIONS)
        assert np.array_equal(as_array(ours), np.asarray(theirs))


def test_invert(picture: Image.Image) -> None:
    assert np.array_equal(quick_operations.invert(picture), np.asarray(auto_augment.invert(picture)))


LEVELLED = {
    "one colour": np.full((5, 6, 3), 9, np.uint8),
    "one pixel": np.zeros((1, 1, 3), np.uint8),
    "two levels": np.random.default_rng(1).integers(0, 2, (40, 40, 3), dtype=np.uint8) * 255,
    "few levels": np.random.default_rng(2).integers(100, 120, (64, 50, 3), dtype=np.uint8),
    "two rows": np.random.default_rng(3).integers(0, 256, (2, 300, 3), dtype=np.uint8),
    "mostly one": np.where(np.random.default_rng(4).random((90, 80, 1)) < 0.97, 250, 3)
    .repeat(3, 2)
    .astype(np.uint8),
}


@pytest.mark.parametrize(
    ("name", "factors"),
    [("equalize", ()), ("auto_contrast", ())]
    + [(name, (factor,)) for name in ("contrast", "sharpness") for factor in (0.0, 0.1, 1.0, 1.54, 1.9)],
)
def test_levels_are_those_of_pil(name: str, factors: tuple[float, ...], picture: Image.Image) -> None:
    for pixels in (np.array(picture), *LEVELLED.values()):
        theirs = np.asarray(getattr(auto_augment, name)(Image.fromarray(pixels), *factors))
        for given in (Image.fromarray(pixels), pixels.copy()):
            ours = getattr(quick_operations, name)(given, *factors, **OPTIONS)
            assert ours.dtype == np.uint8 and np.array_equal(ours, theirs)
        assert np.array_equal(given, pixels)


def test_no_bits_are_black(picture: Image.Image) -> None:
    assert not as_array(quick_operations.posterize(picture, 0)).any()


@pytest.mark.parametrize("policy", ["original", "originalr", "v0r", "3a"])
def test_policies_draw_and_do_what_those_of_timm_do(policy: str, picture: Image.Image) -> None:
    options = {"translate_const": 20, "img_mean": (10, 20, 30), "interpolation": Image.Resampling.BICUBIC}
    theirs = auto_augment_transform(policy, dict(options))
    ours = quick_policies(auto_augment_transform(policy, dict(options)))
    near = 0
    for seed in range(60):
        random.seed(seed)
        expected = np.asarray(theirs(picture)).astype(int)
        after = random.random()
        random.seed(seed)
        off = np.abs(as_array(ours(np.array(picture))).astype(int) - expected)
        assert random.random() == after
        near += bool((off <= 1).mean() > 0.99)
    # a level's difference before solarising or equalising can be a large one after
    assert near >= 57


@pytest.mark.skipif(not quick_operations.can_multiply_sparse(), reason="PIL moves everything without MKL")
def test_pil_moves_where_the_weights_of_all_moves_are_too_many() -> None:
    operations = [
        operation for pair in quick_policies(auto_augment_transform("v0")).policy for operation in pair
    ]
    assert all(
        operation.aug_fn is not quick_operations.rotate
        for operation in operations
        if operation.name == "Rotate"
    )
    few = [
        operation for pair in quick_policies(auto_augment_transform("original")).policy for operation in pair
    ]
    assert [operation.aug_fn for operation in few if operation.name == "Rotate"] == [
        quick_operations.rotate
    ] * 6
