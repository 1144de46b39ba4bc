"""Which bytes are taken for a picture."""

from __future__ import annotations

from collections.abc import Callable
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from cn_clip.clip.decode import max_pixels
from cn_clip.preprocess.splits.picture_check import BadPictureError, check_picture, find_fault


@pytest.mark.parametrize("decode", [False, True])
def test_every_mode_passes(pictures_of_every_mode: dict[str, bytes], decode: bool) -> None:
    for mode, picture in pictures_of_every_mode.items():
        assert check_picture(picture, decode=decode) == (12, 8), mode


@pytest.mark.parametrize("settings", [{"progressive": True}, {"subsampling": 0}, {"keep_rgb": True}])
def test_every_kind_of_jpeg_decodes(settings: dict[str, int]) -> None:
    assert check_picture(noise("JPEG", **settings), decode=True) == (200, 150)


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
    assert found is not None and "decompression bomb" in found


def test_a_header_may_not_claim_more_than_pil_opens() -> None:
    jpeg = bytearray(noise("JPEG"))
    frame = jpeg.index(b"\xff\xc0")  # then length, precision, and height and width in two bytes each
    jpeg[frame + 5 : frame + 9] = (60_000).to_bytes(2, "big") * 2
    assert find_fault(bytes(jpeg)) == "it claims 60000 x 60000 pixels, more than 178,956,970"
    assert max_pixels() == 178_956_970


@pytest.mark.parametrize("kind", ["baseline", "progressive"])
def test_decoding_finds_what_the_cheap_check_does_not(kind: str) -> None:
    jpeg = noise("JPEG", progressive=kind == "progressive")
    middle = len(jpeg) // 2
    # a hole where the coded data are: header and end are as they should be
    holed = jpeg[:middle] + bytes(2000) + jpeg[middle + 2000 :]
    assert find_fault(holed) is None
    with pytest.raises(BadPictureError, match="damaged .Corrupt JPEG data"):
        check_picture(holed, decode=True)


def test_decoding_finds_a_damaged_png() -> None:
    png = bytearray(noise("PNG"))
    png[len(png) // 2] ^= 255
    assert find_fault(bytes(png)) is None
    with pytest.raises(BadPictureError, match="cannot be decoded"):
        check_picture(bytes(png), decode=True)


def test_odd_but_whole_jpegs_pass() -> None:
    """What libjpeg-turbo remarks on, and what is no damage."""
    jpeg = bytearray(noise("JPEG"))
    version = jpeg.index(b"JFIF\0") + 5
    jpeg[version] = 9
    assert check_picture(bytes(jpeg), decode=True) == (200, 150)


def noise(format: str, **settings: int) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 256, (150, 200, 3), dtype=np.uint8)
    file = BytesIO()
    Image.fromarray(pixels).save(file, format, **settings)
    return file.getvalue()


def test_a_jpeg_that_is_damaged_in_the_middle_is_found_only_by_decoding() -> None:
    """As docs/data.md says: what reads pictures without being asked to check them makes other pixels of it."""
    damaged = bytearray(noise("JPEG"))
    damaged[len(damaged) // 2 : len(damaged) // 2 + 300] = bytes(300)
    assert check_picture(bytes(damaged), decode=False) == (200, 150)
    with Image.open(BytesIO(bytes(damaged))) as image:
        assert image.convert("RGB").size == (200, 150)
    with pytest.raises(BadPictureError, match="damaged"):
        check_picture(bytes(damaged), decode=True)
