"""A tiny split, and a run of the trainer over it in this process."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cn_clip.data.store import SplitWriter
from cn_clip.training.main import main

CAPTIONS = (
    "红色的花",
    "蓝天下的一座山",
    "一只正在睡觉的猫",
    "海边的日落",
    "两个孩子在踢足球",
    "一碗热气腾腾的面条",
    "A dog runs",
)
NUM_PAIRS = 21

Train = Callable[..., Path]


def png(seed: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (40, 36, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


@pytest.fixture(scope="session")
def tiny_split(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """21 pairs; every caption stands beside three pictures."""
    path = tmp_path_factory.mktemp("lmdb") / "train"
    with SplitWriter(path) as writer:
        for number in range(NUM_PAIRS):
            writer.add_image(100 + number, png(number))
            writer.add_pair(100 + number, number % len(CAPTIONS), CAPTIONS[number % len(CAPTIONS)])
    return path


@pytest.fixture
def train(tiny_split: Path, tmp_path: Path) -> Train:
    """Trains tiny towers on the tiny split with further words; returns the run folder."""

    def run(*words: str, name: str = "run", data: Path = tiny_split) -> Path:
        main(
            [
                f"--train-data={data}",
                "--vision-model=tiny-vit",
                "--text-model=tiny-bert",
                "--batch-size=4",
                "--valid-batch-size=7",
                "--warmup=2",
                "--log-interval=1",
                "--num-workers=0",
                "--valid-num-workers=0",
                "--precision=fp32",
                f"--logs={tmp_path}",
                f"--name={name}",
                "--set=log.tensorboard=false",
                "--set=log.summary=false",
                *words,
            ]
        )
        return tmp_path / name

    return run
