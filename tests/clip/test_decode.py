from __future__ import annotations

import io
import os
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cn_clip.clip.augment.autoaugment import Options
from cn_clip.clip.decode import SPARE, decode_jpeg, jpeg_size, open_picture, shrink_for
from cn_clip.clip.transform import exact_transform, fast_transform, train_transform
from cn_clip.config.schema import Part
from cn_clip.errors import DataError


def smooth(width: int, height: int, seed: int = 0) -> Image.Image:
    coarse = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def encoded(image: Image.Image, kind: str = "JPEG", **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0}, {"keep_rgb": True}])
def test_jpeg_pixels_are_those_of_pil(options: dict[str, Any]) -> None:
    raw = encoded(smooth(61, 47), **options)
    assert jpeg_size(raw) == (47, 61)
    pixels = decode_jpeg(raw, (47, 61))
    assert pixels is not None and np.array_equal(pixels, np.asarray(Image.open(io.BytesIO(raw))))


def test_grey_jpeg_has_three_equal_colours() -> None:
    raw = encoded(smooth(33, 20).convert("L"))
    pixels = decode_jpeg(raw, (20, 33))
    assert pixels is not None and pixels.shape == (20, 33, 3)
    assert np.array_equal(pixels[:, :, 0], np.asarray(Image.open(io.BytesIO(raw))))
    assert (pixels[:, :, 1:] == pixels[:, :, :1]).all()


@pytest.mark.parametrize("shrink", [2, 4, 8])
@pytest.mark.parametrize("size", [(160, 128), (161, 135)])
def test_shrunken_sides_are_rounded_up(shrink: int, size: tuple[int, int]) -> None:
    pixels = decode_jpeg(encoded(smooth(size[1], size[0])), size, shrink)
    assert pixels is not None
    assert pixels.shape == (-(-size[0] // shrink), -(-size[1] // shrink), 3)


@pytest.mark.parametrize("raw", [b"", b"GIF89a", b"\xff\xd8\xff", b"\xff\xd8\xff\xe0junk"])
def test_what_is_no_jpeg_is_left_to_pil(raw: bytes) -> None:
    assert jpeg_size(raw) is None


def test_cmyk_is_left_to_pil() -> None:
    assert jpeg_size(encoded(smooth(20, 20).convert("CMYK"))) is None


def test_a_cut_jpeg_is_left_to_pil() -> None:
    raw = encoded(smooth(64, 64))
    assert jpeg_size(raw[:-60]) == (64, 64)
    assert decode_jpeg(raw[:-60], (64, 64)) is None


def test_shrinking_leaves_room_for_the_resize() -> None:
    side = SPARE * 224
    assert shrink_for((375, 500), 224) == 1
    assert shrink_for((int(2 * side) - 1, 9999), 224) == 1
    assert shrink_for((9999, int(2 * side)), 224) == 2
    assert shrink_for((1500, 2000), 224) == 2
    assert shrink_for((int(4 * side), 9999), 224) == 4
    assert shrink_for((99999, 99999), 224) == 8


@pytest.mark.parametrize("size", [(1500, 2000), (1333, 1901), (1121, 2803), (1123, 1124)])
def test_large_pictures_stay_near_the_exact_ones(size: tuple[int, int]) -> None:
    grain = np.random.default_rng(1).normal(size=(*size, 3))
    photo = np.clip(np.asarray(smooth(size[1], size[0])) + 8 * grain, 0, 255).astype(np.uint8)
    raw = encoded(Image.fromarray(photo), quality=85)
    assert shrink_for(size, 224) == 2
    exact = Image.open(io.BytesIO(raw)).resize((224, 224), Image.Resampling.BICUBIC)
    off = np.abs(
        fast_transform(224)(raw).permute(1, 2, 0).numpy().astype(int) - np.asarray(exact).astype(int)
    )
    assert off.mean() <= 1
    assert (off <= 4).mean() >= 0.999


def with_size(raw: bytes, height: int, width: int) -> bytes:
    """The JPEG with another size in its header."""
    at = raw.index(b"\xff\xc0") + 5
    return raw[:at] + struct.pack(">HH", height, width) + raw[at + 4 :]


@pytest.mark.parametrize("mode", ["exact", "fast"])
@pytest.mark.parametrize("augment", [None, Options()])
def test_a_header_of_too_many_pixels_is_a_data_error(mode: str, augment: Options | None) -> None:
    part = Part("none", None) if augment is None else Part("autoaugment", augment)
    read = train_transform(16, mode, part)  # type: ignore[arg-type]  # parametrised as text
    jpeg = with_size(encoded(smooth(64, 64)), 65000, 65000)
    png = encoded(Image.new("1", (14000, 14000)), "PNG")
    for raw in (jpeg, png):
        with pytest.raises(DataError, match="too large to be opened safely"):
            read(raw)


def test_the_limit_of_pixels_is_that_of_pil(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = encoded(smooth(40, 30))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 599)
    for read in (open_picture, jpeg_size):
        with pytest.raises(DataError, match="1198"):
            read(raw)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    assert open_picture(raw).size == (40, 30) and jpeg_size(raw) == (30, 40)


MODES = ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "LAB", "I", "I;16", "I;16B", "F"]


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_of_pil_gives_the_exact_pixels(mode: str) -> None:
    grey = np.asarray(smooth(50, 41).convert("L"))
    made = {
        "LAB": lambda: Image.merge("LAB", smooth(50, 41).split()),
        "PA": lambda: smooth(50, 41).convert("P").convert("PA"),
        "I;16": lambda: Image.fromarray(grey.astype("<u2") * 257),
        "I;16B": lambda: Image.fromarray(grey.astype(">u2") * 257),
    }
    raw = encoded(made.get(mode, lambda: smooth(50, 41).convert(mode))(), "TIFF")
    exact = open_picture(raw).resize((16, 16), Image.Resampling.BICUBIC).convert("RGB")
    assert exact_transform(16)(raw).shape == (3, 16, 16)
    off = np.abs(fast_transform(16)(raw).permute(1, 2, 0).numpy().astype(int) - np.asarray(exact).astype(int))
    assert off.max() <= 1


@pytest.mark.parametrize("size", [(1, 1), (1, 5000), (5000, 1), (2, 3), (65500, 1), (7, 9000)])
@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_odd_shapes_give_nearly_the_exact_pixels(size: tuple[int, int], kind: str) -> None:
    raw = encoded(smooth(*size), kind)
    exact = open_picture(raw).resize((32, 32), Image.Resampling.BICUBIC)
    off = np.abs(fast_transform(32)(raw).permute(1, 2, 0).numpy().astype(int) - np.asarray(exact).astype(int))
    assert off.max() <= 2
    for mode in ("exact", "fast"):
        assert train_transform(32, mode, Part("autoaugment", Options()))(raw).shape == (3, 32, 32)


@pytest.mark.parametrize("mode", ["exact", "fast"])
def test_no_program_is_run_on_a_picture(mode: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """PIL hands an EPS to Ghostscript, whose PostScript is a program of whoever made the file."""
    called = tmp_path / "called"
    ghostscript = tmp_path / "gs"
    ghostscript.write_text(f"#!/bin/sh\ntouch {called}\n")
    ghostscript.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setattr("PIL.EpsImagePlugin.gs_binary", None)
    raw = encoded(smooth(20, 20), "EPS")
    with pytest.raises(DataError, match="a EPS file, which has no pixels"):
        (exact_transform if mode == "exact" else fast_transform)(16)(raw)
    assert not called.exists()
