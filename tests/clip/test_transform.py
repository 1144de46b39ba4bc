from __future__ import annotations

import contextlib
import io
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cn_clip.clip.augment import autoaugment, geometric, none
from cn_clip.clip.transform import (
    MEAN,
    STD,
    BytesTransform,
    exact_transform,
    fast_transform,
    image_transform,
    train_transform,
)
from cn_clip.config.schema import Part
from cn_clip.errors import DataError


def encoded(image: Image.Image, kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    image.save(file, kind)
    return file.getvalue()


@pytest.fixture
def picture() -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


PARTS = {
    "none": Part("none", none.Options()),
    "autoaugment": Part("autoaugment", autoaugment.Options()),
    "geometric": Part("geometric", geometric.Options()),
}


@pytest.mark.parametrize("name", PARTS)
@pytest.mark.parametrize(("mode", "dtype"), [("exact", torch.float32), ("fast", torch.uint8)])
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF"])
def test_train_transforms_keep_type_and_shape(
    name: str, mode: str, dtype: torch.dtype, kind: str, picture: Image.Image
) -> None:
    transform: BytesTransform = pickle.loads(pickle.dumps(train_transform(16, mode, PARTS[name])))  # type: ignore[arg-type]
    tensor = transform(encoded(picture, kind))
    assert tensor.dtype == dtype
    assert tensor.shape == (3, 16, 16)
    # the loader stacks either order of dimensions without turning it
    assert tensor.is_contiguous() or tensor.permute(1, 2, 0).is_contiguous()


@pytest.mark.parametrize("name", ["autoaugment", "geometric"])
@pytest.mark.parametrize("mode", ["exact", "fast"])
def test_a_seed_repeats_the_augmentation(name: str, mode: str, picture: Image.Image) -> None:
    import random

    transform = train_transform(16, mode, PARTS[name])  # type: ignore[arg-type]
    raw = encoded(picture)

    def augmented(seed: int) -> torch.Tensor:
        random.seed(seed)
        torch.manual_seed(seed)
        return transform(raw)

    first = [augmented(seed) for seed in range(5)]
    assert all(torch.equal(augmented(seed), tensor) for seed, tensor in enumerate(first))
    assert any(not torch.equal(first[0], tensor) for tensor in first[1:])


def test_fast_is_exact_before_normalising_on_small_drawings() -> None:
    drawing = Image.new("RGB", (16, 16), (255, 0, 10))
    fast, exact = fast_transform(16)(encoded(drawing)), exact_transform(16)(encoded(drawing))
    assert fast[:, 0, 0].tolist() == [255, 0, 10]
    expected = [(level / 255 - mean) / std for level, mean, std in zip([255, 0, 10], MEAN, STD, strict=True)]
    assert exact[:, 3, 3].tolist() == pytest.approx(expected)


def test_exact_mode_normalises_augmented_pictures(picture: Image.Image) -> None:
    still = geometric.Options(
        rotate_degrees=0, scale_min=1, scale_max=1, shift=0, brightness=0, contrast=0, saturation=0
    )
    unchanged = train_transform(16, "exact", Part("geometric", still))
    assert torch.equal(unchanged(encoded(picture)), exact_transform(16)(encoded(picture)))


@pytest.mark.parametrize(
    "size", [(300, 400), (400, 300), (300, 376), (300, 377), (230, 900), (100, 230), (230, 220), (1200, 2600)]
)
def test_hard_edges_are_cut_in_the_order_of_pil(size: tuple[int, int]) -> None:
    checks = np.random.default_rng(0).integers(0, 2, (size[1], size[0], 3), dtype=np.uint8) * 255
    exact = np.asarray(Image.fromarray(checks).resize((224, 224), Image.Resampling.BICUBIC)).astype(int)
    fast = fast_transform(224)(encoded(Image.fromarray(checks))).permute(1, 2, 0).numpy()
    assert np.abs(fast - exact).max() <= 2


def test_exif_does_not_turn_the_picture(picture: Image.Image) -> None:
    file = io.BytesIO()
    turned = Image.Exif()
    turned[0x0112] = 6
    picture.save(file, "JPEG", exif=turned)
    assert torch.equal(fast_transform(8)(file.getvalue()), fast_transform(8)(encoded(picture, "JPEG")))


@pytest.mark.parametrize("make", [exact_transform, fast_transform])
@pytest.mark.parametrize("cut", [0, 3, 20, 150, -30])
@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_damaged_bytes_are_a_data_error(make: object, kind: str, cut: int, picture: Image.Image) -> None:
    with pytest.raises(DataError, match="picture"):
        make(16)(encoded(picture, kind)[:cut])  # type: ignore[operator]


@pytest.mark.parametrize("make", [exact_transform, fast_transform])
def test_bytes_that_are_no_picture_are_a_data_error(make: object) -> None:
    with pytest.raises(DataError, match="its 9 bytes are no picture of a known format"):
        make(16)(b"not a jpg")  # type: ignore[operator]


def test_random_damage_never_escapes_as_another_error(picture: Image.Image) -> None:
    rng = np.random.default_rng(1)
    for kind in ("PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF"):
        whole = encoded(picture, kind)
        for _ in range(60):
            raw = bytearray(whole)
            for place in rng.integers(0, len(raw), 4):
                raw[place] = rng.integers(0, 256)
            for transform in (exact_transform(8), fast_transform(8)):
                with contextlib.suppress(DataError):
                    assert transform(bytes(raw)).shape == (3, 8, 8)


def test_image_transform_takes_pil_pictures(picture: Image.Image) -> None:
    transform = pickle.loads(pickle.dumps(image_transform(8)))
    assert transform(picture.convert("LA")).shape == (3, 8, 8)
    assert image_transform()(picture).shape == (3, 224, 224)


def test_import_stays_light(tmp_path: Path) -> None:
    code = "import sys; from cn_clip.clip import transform; assert not {'torchvision', 'PIL', 'timm', 'simplejpeg'} & set(sys.modules)"
    root = str(Path(__file__).parents[2])
    subprocess.run(
        [sys.executable, "-c", code], check=True, env={**os.environ, "PYTHONPATH": root}, cwd=tmp_path
    )
