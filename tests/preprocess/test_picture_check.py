"""Which bytes are taken for a picture."""

from __future__ import annotations

from collections.abc import Callable
from io import BytesIO

import pytest
from PIL import Image

from cn_clip.preprocess.splits.picture_check import find_fault


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16", "YCbCr"])
def test_every_mode_passes(mode: str) -> None:
    file = BytesIO()
    Image.new(mode, (5, 4)).save(file, "TIFF" if mode in ("CMYK", "YCbCr") else "PNG")
    assert find_fault(file.getvalue()) is None


def test_bytes_after_the_end_are_no_fault(encode_picture: Callable[..., bytes]) -> None:
    for format in ("JPEG", "PNG", "GIF", "WEBP"):
        assert find_fault(encode_picture((1, 2, 3), format) + bytes(500)) is None


def test_a_jpeg_that_lacks_only_its_last_bytes_follows_pil(encode_picture: Callable[..., bytes]) -> None:
    assert find_fault(encode_picture((1, 2, 3), "JPEG")[:-30]) is not None


@pytest.mark.parametrize(
    ("picture", "fault"),
    [
        (b"", "empty"),
        (b"hello", "known format"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n", "EPS has no pixels"),
    ],
)
def test_what_is_no_picture(picture: bytes, fault: str) -> None:
    found = find_fault(picture)
    assert found is not None and fault in found


def test_a_decompression_bomb_is_a_fault() -> None:
    file = BytesIO()
    Image.new("1", (20_000, 20_000)).save(file, "PNG")  # 400 million pixels in 50 kB
    found = find_fault(file.getvalue())
    assert found is not None and "cannot be decoded" in found
