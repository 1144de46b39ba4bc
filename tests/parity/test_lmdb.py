"""Stores both ways: the reference's build read by us, ours read by the reference."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import pytest
import torch
from PIL import Image

from cn_clip.data.store import PairRecord, open_split
from cn_clip.eval.data import EvalImgDataset
from cn_clip.training.data import LMDBDataset

pytestmark = pytest.mark.parity

Run = Callable[..., "subprocess.CompletedProcess[str]"]
BUILD = "cn_clip/preprocess/build_lmdb_dataset.py"
MODES = {3: "RGB", 20: "L", 100: "P", 7: "RGBA", 11: "RGB"}
CAPTIONS = [(5, "“一只 Cat”", [3, 20]), (6, "没有图", []), (7, "狗", [100]), (8, "Ｔ恤 " * 40, [7, 3, 11])]


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A split whose pictures are in standard base64, except the last ones in url-safe."""
    folder = tmp_path_factory.mktemp("data")
    torch.manual_seed(0)
    rows = []
    for position, (image_id, mode) in enumerate(MODES.items()):
        encode = base64.b64encode if position < 3 else base64.urlsafe_b64encode
        rows.append(
            f"{image_id}\t{encode(random_picture(mode, 'JPEG' if mode == 'L' else 'PNG')).decode()}\n"
        )
    assert any("_" in row or "-" in row for row in rows)
    (folder / "train_imgs.tsv").write_text("".join(rows))
    captions = [
        json.dumps({"text_id": a, "text": b, "image_ids": c}, ensure_ascii=False) for a, b, c in CAPTIONS
    ]
    (folder / "train_texts.jsonl").write_text("\n".join(captions) + "\n", encoding="utf-8")
    return folder


def random_picture(mode: str, format: str) -> bytes:
    pixels = torch.randint(0, 256, (40, 56, 4), dtype=torch.uint8).numpy()
    file = BytesIO()
    Image.fromarray(pixels, "RGBA").convert("RGB").convert(mode).save(file, format)
    return file.getvalue()


@pytest.fixture(scope="module")
def reference_split(data_dir: Path, reference_dir: Path) -> Path:
    """What the reference's own build makes of it."""
    lmdb_dir = data_dir / "by_reference"
    words = ["--data_dir", data_dir, "--splits", "train", "--lmdb_dir", lmdb_dir]
    subprocess.run(
        [sys.executable, str(reference_dir / BUILD), *map(str, words)],
        env={**os.environ, "PYTHONPATH": str(reference_dir)},
        check=True,
        capture_output=True,
        timeout=300,
    )
    return lmdb_dir / "train"


@pytest.fixture(scope="module")
def our_splits(data_dir: Path, run_ours: Run) -> dict[str, Path]:
    """What ours makes of it, by format."""
    splits = {}
    for store_format in ("v2", "reference"):
        lmdb_dir = data_dir / store_format
        words = [
            "--data_dir",
            data_dir,
            "--splits",
            "train",
            "--lmdb_dir",
            lmdb_dir,
            "--format",
            store_format,
        ]
        done = run_ours(BUILD, *words)
        assert done.returncode == 0, done.stderr
        splits[store_format] = lmdb_dir / "train"
    return splits


EXPECTED = [
    PairRecord(image_id, text_id, text) for text_id, text, image_ids in CAPTIONS for image_id in image_ids
]


def test_we_read_the_reference_build(reference_split: Path, our_splits: dict[str, Path]) -> None:
    theirs = open_split(reference_split)
    assert [theirs.pairs.read(index) for index in range(len(theirs.pairs))] == EXPECTED
    for path in our_splits.values():
        ours = open_split(path)
        assert [ours.pairs.read(index) for index in range(len(ours.pairs))] == EXPECTED
        assert ours.images.ids() == theirs.images.ids() == [100, 11, 20, 3, 7]
        assert all(ours.images.read(image_id) == theirs.images.read(image_id) for image_id in MODES)


def test_the_reference_reads_our_build(
    reference_split: Path, our_splits: dict[str, Path], run_reference: Run, tmp_path: Path
) -> None:
    code = """
        import sys, torch
        from cn_clip.training.data import LMDBDataset
        from cn_clip.eval.data import EvalImgDataset
        for split, output in zip(sys.argv[1::2], sys.argv[2::2]):
            pairs = LMDBDataset(split, split="train", max_txt_length=24, resolution=32)
            result = {"numbers": [pairs.number_samples, pairs.number_images], "pairs": list(map(pairs.__getitem__, range(6)))}
            del pairs  # its LMDB must be closed before the next one opens it
            images = EvalImgDataset(split + "/imgs", resolution=32)
            result["numbers"].append(len(images))
            result["images"] = [images[i] for i in range(len(images))]
            torch.save(result, output)
    """
    outputs = [tmp_path / "theirs.pt", tmp_path / "ours.pt"]
    run_reference(code, reference_split, outputs[0], our_splits["reference"], outputs[1])
    theirs, ours = (torch.load(path, weights_only=True) for path in outputs)
    assert ours["numbers"] == theirs["numbers"] == [6, 5, 5]
    for kind in ("pairs", "images"):
        assert len(ours[kind]) == len(theirs[kind])
        for mine, yours in zip(ours[kind], theirs[kind], strict=True):
            assert_equal_items(mine, yours)


def test_the_reference_stops_at_format_2_and_says_why(
    our_splits: dict[str, Path], run_reference: Run
) -> None:
    code = """
        import sys
        from cn_clip.training.data import LMDBDataset
        from cn_clip.eval.data import EvalImgDataset
        for open_store in (lambda: LMDBDataset(sys.argv[1]), lambda: EvalImgDataset(sys.argv[1] + "/imgs")):
            try: open_store()
            except ValueError as error: print(error)
    """
    done = run_reference(code, our_splits["v2"])
    assert done.stdout.count("build it again with build_lmdb_dataset.py --format reference") == 2


@pytest.mark.parametrize("store_format", ["v2", "reference"])
def test_our_old_names_read_every_format_alike(
    reference_split: Path, our_splits: dict[str, Path], store_format: str
) -> None:
    ours, theirs = our_splits[store_format], reference_split
    pairs = [
        LMDBDataset(str(path), split="train", max_txt_length=24, resolution=32) for path in (ours, theirs)
    ]
    images = [EvalImgDataset(str(path / "imgs"), resolution=32) for path in (ours, theirs)]
    for mine, yours in (pairs, images):
        assert len(mine) == len(yours)
        for index in range(len(mine)):
            assert_equal_items(mine[index], yours[index])


def assert_equal_items(mine: tuple[object, ...], yours: tuple[object, ...]) -> None:
    assert len(mine) == len(yours)
    for one, other in zip(mine, yours, strict=True):
        if isinstance(one, torch.Tensor):
            assert isinstance(other, torch.Tensor) and torch.equal(one, other)
        else:
            assert one == other
