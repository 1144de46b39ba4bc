"""Photos that look alike or not, and small splits as files and as LMDB."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cn_clip.data.store import SplitWriter

Captions = Iterable[tuple[int, str, list[int]]]
"""(text id, text, image ids)"""


def draw(seed: int, size: tuple[int, int] = (320, 240)) -> Image.Image:
    """A smooth random picture, as unlike another as two photos."""
    small = np.random.default_rng(seed).integers(0, 256, (7, 9, 3), dtype=np.uint8)
    return Image.fromarray(small).resize(size, Image.Resampling.BICUBIC)


def encode(image: Image.Image, format: str = "JPEG", **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, format, **options)
    return stream.getvalue()


@pytest.fixture
def photo() -> Callable[..., bytes]:
    """Encoded picture of a seed: other sizes, formats and qualities of one seed look the same."""

    def make(
        seed: int,
        size: tuple[int, int] = (320, 240),
        format: str = "JPEG",
        mode: str = "RGB",
        **options: object,
    ) -> bytes:
        return encode(draw(seed, size).convert(mode), format, **options)

    return make


@pytest.fixture
def write_tables(tmp_path: Path) -> Callable[..., Path]:
    """Writes `{name}_imgs.tsv` and `{name}_texts.jsonl`; pictures may be a list, to give an id twice."""

    def write(
        name: str,
        pictures: Mapping[int, bytes] | list[tuple[int, bytes]],
        captions: Captions,
        more_pictures: bytes = b"",
        more_captions: bytes = b"",
    ) -> Path:
        rows = pictures.items() if isinstance(pictures, Mapping) else pictures
        tsv = b"".join(b"%d\t%s\n" % (image_id, base64.b64encode(picture)) for image_id, picture in rows)
        lines = (
            json.dumps({"text_id": text_id, "text": text, "image_ids": image_ids})
            for text_id, text, image_ids in captions
        )
        (tmp_path / f"{name}_imgs.tsv").write_bytes(tsv + more_pictures)
        (tmp_path / f"{name}_texts.jsonl").write_bytes(
            "".join(f"{line}\n" for line in lines).encode() + more_captions
        )
        return tmp_path

    return write


@pytest.fixture
def write_lmdb(tmp_path: Path) -> Callable[..., Path]:
    """Writes an LMDB split; captions may name pictures that are not there."""

    def write(name: str, pictures: Mapping[int, bytes], captions: Captions, format: str = "v2") -> Path:
        path = tmp_path / "lmdb" / name
        with SplitWriter(path, format) as writer:  # type: ignore[arg-type]  # a Literal in the signature
            for image_id, picture in pictures.items():
                writer.add_image(image_id, picture, "a test")
            for text_id, text, image_ids in captions:
                for image_id in image_ids:
                    writer.add_pair(image_id, text_id, text)
        return path

    return write
