"""Small pictures, and what an import left."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import pytest
from PIL import Image

from cn_clip.data.store import open_split
from cn_clip.preprocess.import_dataset import main
from cn_clip.preprocess.splits.build import BuildOptions, build_split
from cn_clip.preprocess.splits.split_files import find_splits


def encode(shade: int, format: str = "JPEG", size: tuple[int, int] = (12, 8)) -> bytes:
    stream = BytesIO()
    Image.new("RGB", size, (shade % 256, shade // 256 % 256, 90)).save(stream, format)
    return stream.getvalue()


class Imported:
    """The files of a folder that an import wrote."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def images(self, split: str = "train") -> dict[int, bytes]:
        rows = [line.split("\t") for line in (self.folder / f"{split}_imgs.tsv").read_text().splitlines()]
        assert len({image_id for image_id, _ in rows}) == len(rows)
        return {int(image_id): base64.b64decode(picture, validate=True) for image_id, picture in rows}

    def texts(self, split: str = "train") -> list[tuple[int, str, list[int]]]:
        rows = read_jsonl(self.folder / f"{split}_texts.jsonl")
        assert all(list(row) == ["text_id", "text", "image_ids"] for row in rows)
        return [tuple(row.values()) for row in rows]

    def names(self, split: str = "train") -> dict[str, int]:
        rows = read_jsonl(self.folder / f"{split}_names.jsonl")
        return {row["name"]: row["image_id"] for row in rows if not row.get("removed")}

    def by_name(self, split: str = "train") -> dict[str, tuple[bytes, list[str]]]:
        """Name -> its picture and captions."""
        images, texts = self.images(split), self.texts(split)
        return {
            name: (images[image_id], [text for _, text, ids in texts if image_id in ids])
            for name, image_id in self.names(split).items()
        }

    def bad_rows(self) -> list[dict[str, str]]:
        return read_jsonl(self.folder / "bad_rows.jsonl")

    def content(self) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in sorted(self.folder.iterdir()) if path.is_file()}

    def check_store(self, *splits: str) -> None:
        """An LMDB of the files holds just what they hold."""
        for files in find_splits(self.folder, ",".join(splits)):
            build_split(files, self.folder / "lmdb", BuildOptions(tokens=False))
            self.check_built(files.name)

    def check_built(self, name: str, images: dict[int, bytes] | None = None) -> None:
        split = open_split(self.folder / "lmdb" / name)
        images = self.images(name) if images is None else images
        assert {image_id: split.images.read(image_id) for image_id in split.images.ids()} == images
        pairs = [split.pairs.read(place) for place in range(len(split.pairs))]
        assert [(pair.image_id, pair.text_id, pair.caption) for pair in pairs] == [
            (image_id, text_id, text) for text_id, text, ids in self.texts(name) for image_id in ids
        ]


def read_jsonl(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_bytes().splitlines()]


RunImport = Callable[..., Imported]


@pytest.fixture
def run_import(tmp_path: Path) -> RunImport:
    """Runs `cn-clip import` into `out`, with the words given."""

    def run(*words: object) -> Imported:
        main([*map(str, words), "--output-dir", str(tmp_path / "out")])
        return Imported(tmp_path / "out")

    return run


@pytest.fixture
def encode_picture() -> Callable[..., bytes]:
    return encode


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """`images/` of six pictures, two of them in folders."""
    names = ["0.jpg", "1.png", "2.jpg", "鞋/3.jpg", "鞋/红/4.webp", "5.jpg"]
    for number, name in enumerate(names):
        path = tmp_path / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode(number * 40, {".jpg": "JPEG", ".png": "PNG"}.get(path.suffix, "WEBP")))
    return tmp_path / "images"
