"""Tar shards and small sets for the tests of training sets."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

import pytest
from PIL import Image

from cn_clip.data.pairs import BadPair, PairSource, PairStream, RawPair
from cn_clip.data.pairs.webdataset import Options, build
from cn_clip.data.store import SplitWriter

Lane = list[RawPair | BadPair]


def png(number: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (8, 8), (number % 256, number // 256, 0)).save(file, "PNG")
    return file.getvalue()


def write_tar(path: Path, members: dict[str, bytes], **how: object) -> Path:
    with tarfile.open(path, "w", **how) as tar:
        for name, content in members.items():
            header = tarfile.TarInfo(name)
            header.size = len(content)
            tar.addfile(header, io.BytesIO(content))
    return path


def write_shards(folder: Path, sizes: list[int], *, stats: bool = True) -> Path:
    """Shards as img2dataset writes them; picture and caption of sample i of all are number i."""
    folder.mkdir(parents=True, exist_ok=True)
    number = 0
    for shard, size in enumerate(sizes):
        members = {}
        for place in range(size):
            key = f"{shard:05}{place:04}"
            members |= {f"{key}.jpg": png(number), f"{key}.txt": f"图片 {number}".encode()}
            members[f"{key}.json"] = json.dumps(
                {"caption": f"说明 {number}", "key": key, "width": 8}
            ).encode()
            number += 1
        write_tar(folder / f"{shard:05}.tar", members)
        if stats:
            (folder / f"{shard:05}_stats.json").write_text(json.dumps({"count": size + 3, "successes": size}))
    return folder


@pytest.fixture
def shards(tmp_path: Path) -> Callable[..., Path]:
    return lambda sizes, stats=True, name="shards": write_shards(tmp_path / name, sizes, stats=stats)


def open_tars(*urls: object, **options: object) -> PairStream:
    return build(Options(urls=tuple(map(str, urls)), **options))


def walk(
    stream: PairStream, length: int, *, lane: int = 0, num_lanes: int = 1, first: int = 0, seed: int = 7
) -> Lane:
    return list(islice(stream.lane(lane, num_lanes, first=first, seed=seed), length))


def numbers(pairs: Lane) -> list[int]:
    """The number that each pair of `write_shards` bears; -1 for a bad one."""
    return [int(pair.caption.split()[1]) if isinstance(pair, RawPair) else -1 for pair in pairs]


@pytest.fixture
def split(tmp_path: Path) -> Callable[..., str]:
    """An LMDB of so many pairs, whose captions start with its name."""

    def make(name: str, size: int, first_id: int = 0) -> str:
        with SplitWriter(tmp_path / name) as writer:
            for number in range(first_id, first_id + size):
                writer.add_image(number, png(number))
                writer.add_pair(number, number, f"{name} {number}")
        return str(tmp_path / name)

    return make


def read_epoch(source: PairSource, epoch: int, seed: int = 7) -> Iterator[RawPair]:
    return (source.read(index, epoch=epoch, seed=seed) for index in range(len(source)))
