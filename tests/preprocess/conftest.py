"""Small splits as files."""

from __future__ import annotations

import base64
import json
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


def tsv_row(item: tuple[int, bytes]) -> bytes:
    return b"%d\t%s\n" % (item[0], base64.b64encode(item[1]))


def jsonl_row(caption: tuple[int, str, Sequence[int]]) -> bytes:
    text_id, text, image_ids = caption
    row = {"text_id": text_id, "text": text, "image_ids": list(image_ids)}
    return json.dumps(row, ensure_ascii=False).encode() + b"\n"
