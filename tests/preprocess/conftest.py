"""Small splits as files."""

from __future__ import annotations

import base64
import json
import random
from collections.abc import Callable, Mapping, Sequence
from io import BytesIO
from pathlib import Path

import pytest
from PIL import Image

WriteSplit = Callable[..., Path]


def encode(colour: tuple[int, int, int], format: str = "PNG") -> bytes:
    """A small picture of one colour."""
    file = BytesIO()
    Image.new("RGB", (12, 8), colour).save(file, format)
    return file.getvalue()


@pytest.fixture
def encode_picture() -> Callable[..., bytes]:
    return encode


@pytest.fixture
def write_split(tmp_path: Path) -> WriteSplit:
    """Writes `{name}_imgs.tsv` and `{name}_texts.jsonl` of two pictures with three captions, or of what is given."""

    def write(
        name: str = "train",
        pictures: Mapping[int, bytes] | bytes | None = None,
        captions: Sequence[tuple[int, str, Sequence[int]]] | bytes | None = None,
    ) -> Path:
        if pictures is None:
            pictures = {7: encode((255, 0, 0)), 12: encode((0, 0, 255), "JPEG")}
        if captions is None:
            captions = [(1, "红色", [7]), (2, "一张图", [7, 12]), (3, "没有图", [])]
        tsv = pictures if isinstance(pictures, bytes) else b"".join(map(tsv_row, pictures.items()))
        jsonl = captions if isinstance(captions, bytes) else b"".join(map(jsonl_row, captions))
        (tmp_path / f"{name}_imgs.tsv").write_bytes(tsv)
        (tmp_path / f"{name}_texts.jsonl").write_bytes(jsonl)
        return tmp_path

    return write


@pytest.fixture
def write_many(write_split: WriteSplit) -> WriteSplit:
    """Writes a split of pictures of 100 kB each (BMP of noise), with some captions for each."""

    def write(num_pictures: int, shade: int = 1, captions_each: int = 1) -> Path:
        picture = b"BM" + (54 + 3 * 180 * 180).to_bytes(4, "little") + bytes(4) + (54).to_bytes(4, "little")
        picture += (40).to_bytes(4, "little") + (180).to_bytes(4, "little") * 2 + b"\1\0\x18\0" + bytes(24)
        rng = random.Random(shade)
        pictures = {number: picture + rng.randbytes(3 * 180 * 180) for number in range(num_pictures)}
        captions = [
            (number, f"第{number}", [number % num_pictures]) for number in range(num_pictures * captions_each)
        ]
        return write_split("train", pictures, captions)

    return write


@pytest.fixture
def pictures_of_every_mode() -> dict[str, bytes]:
    """A picture for each mode of PIL that a file can have."""
    formats = {
        "1": "PNG",
        "CMYK": "JPEG",
        "F": "TIFF",
        "I": "TIFF",
        "I;16": "PNG",
        "I;16B": "TIFF",
        "L": "JPEG",
    }
    formats |= {"LA": "PNG", "LAB": "TIFF", "P": "GIF", "PA": "TIFF", "RGB": "JPEG", "RGBA": "WEBP"}
    formats |= {"YCbCr": "TIFF"}
    # these are only made in memory; I;16L has a format that PIL gives up
    assert set(Image.MODES) - set(formats) <= {"HSV", "I;16L", "I;16N", "La", "RGBX", "RGBa"}
    pictures = {}
    for mode, format in formats.items():
        file = BytesIO()
        Image.new(mode, (12, 8)).save(file, format)
        pictures[mode] = file.getvalue()
    return pictures


def tsv_row(item: tuple[int, bytes]) -> bytes:
    return b"%d\t%s\n" % (item[0], base64.b64encode(item[1]))


def jsonl_row(caption: tuple[int, str, Sequence[int]]) -> bytes:
    text_id, text, image_ids = caption
    row = {"text_id": text_id, "text": text, "image_ids": list(image_ids)}
    return json.dumps(row, ensure_ascii=False).encode() + b"\n"
