from __future__ import annotations

import io
import random

import numpy as np
import pytest
import torch
from PIL import Image

from cn_clip.clip.augment import autoaugment
from cn_clip.clip.augment.autoaugment import AutoAugmentTransform, Options, build, pipeline
from cn_clip.errors import ConfigError


def test_pipeline_converts_to_rgb_between_mirror_and_policies() -> None:
    names = [getattr(step, "__name__", type(step).__name__) for step in pipeline(Options(), 64).transforms]
    assert names == [
        "RandomResizedCropAndInterpolation",
        "RandomHorizontalFlip",
        "convert_to_rgb",
        "AutoAugment",
        "MaybeToTensor",
        "Normalize",
    ]
    crop = pipeline(Options(scale_min=0.5), 64).transforms[0]
    assert crop.scale == (0.5, 1.0)


def test_no_mirror_leaves_left_and_right() -> None:
    names = [type(step).__name__ for step in pipeline(Options(flip=0), 64).transforms]
    assert "RandomHorizontalFlip" not in names


def test_operation_keeps_size_and_type() -> None:
    picture = torch.randint(
        0, 256, (3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    for options in (Options(), Options(policy="v0", flip=0)):
        augmented = build(options)(picture)
        assert augmented.shape == picture.shape and augmented.dtype == torch.uint8


def test_numpy_is_not_drawn_from() -> None:
    np.random.seed(0)
    before = np.random.get_state()[1].copy()
    for _ in range(20):
        build(Options())(torch.zeros(3, 16, 16, dtype=torch.uint8))
    assert (np.random.get_state()[1] == before).all()


@pytest.mark.parametrize("wrong", [{"scale_min": 0.0}, {"scale_min": 1.5}, {"flip": -0.1}, {"flip": 2.0}])
def test_shares_out_of_range_are_config_errors(wrong: dict[str, float]) -> None:
    (name,) = wrong
    for make in (build, lambda options: AutoAugmentTransform(16, "fast", options)):
        with pytest.raises(ConfigError, match=f"augment.{name}"):
            make(autoaugment.Options(**wrong))


@pytest.mark.parametrize("mode", ["exact", "fast"])
def test_every_policy_of_v0_works(mode: str) -> None:
    file = io.BytesIO()
    Image.linear_gradient("L").convert("RGB").resize((20, 20)).save(file, "PNG")
    transform = AutoAugmentTransform(16, mode, Options(policy="v0"))  # type: ignore[arg-type]  # parametrised as text
    random.seed(0)
    for _ in range(150):
        assert transform(file.getvalue()).shape == (3, 16, 16)
