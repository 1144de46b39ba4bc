"""Feature files beside those of the reference's own program, from the same checkpoint, pictures and captions."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

from cn_clip.clip.model import build_model
from cn_clip.data.store import SplitWriter
from cn_clip.eval import extract_features
from cn_clip.eval.features.files import Key, read_features

pytestmark = [pytest.mark.parity, pytest.mark.slow]

RUN_ON_CPU = """
import runpy, sys, torch
torch.cuda.set_device = lambda *args: None
torch.Tensor.cuda = torch.nn.Module.cuda = lambda self, *args, **kwargs: self
sys.argv[0] = "extract_features"
runpy.run_module("cn_clip.eval.extract_features", run_name="__main__")
"""
TEXTS = ["一只黑色的猫", "“引号”与 ABC", "很长" * 60, "😀 表情 é", "1234.5 元", "狗"]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Folder of the reference's layout: a store, captions, a checkpoint of RN50 and RBT3 with random weights."""
    folder = tmp_path / "theirs"
    with SplitWriter(folder / "lmdb" / "test", "reference") as writer:
        for image_id, mode in zip((3, 20, 100, 7, 11), ("RGB", "L", "P", "RGBA", "CMYK"), strict=True):
            writer.add_image(image_id, picture(image_id, mode))
        writer.add_pair(3, 0, "字")
    rows = [{"text_id": 50 - n, "text": text, "image_ids": []} for n, text in enumerate(TEXTS)]
    rows.append(
        {"text_id": 1000, "text": 2024, "image_ids": [3]}
    )  # a number, which the reference takes as text
    (folder / "test_texts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    torch.manual_seed(0)
    state = {
        f"module.{name}": tensor for name, tensor in build_model("RN50", "RBT3-chinese").state_dict().items()
    }
    torch.save({"epoch": 1, "step": 2, "name": "x", "state_dict": state}, tmp_path / "weights.pt")
    shutil.copytree(folder, tmp_path / "ours")
    return tmp_path


def picture(seed: int, mode: str) -> bytes:
    pixels = torch.randint(0, 256, (9, 7, 3), dtype=torch.uint8, generator=torch.manual_seed(seed)).numpy()
    stream = io.BytesIO()
    image = Image.fromarray(pixels).resize((90, 70)).convert(mode)
    image.save(stream, "JPEG" if mode == "CMYK" else "PNG")
    return stream.getvalue()


def words(data: Path, side: str) -> list[str]:
    return [
        *("--extract-image-feats", "--extract-text-feats", f"--resume={data / 'weights.pt'}"),
        *("--vision-model=RN50", "--text-model=RBT3-chinese", "--img-batch-size=2", "--text-batch-size=3"),
        *(
            f"--image-data={data / side / 'lmdb/test/imgs'}",
            f"--text-data={data / side / 'test_texts.jsonl'}",
        ),
    ]


def test_same_files_ids_order_and_features(
    data: Path, run_reference: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    run_reference(RUN_ON_CPU, *words(data, "theirs"))
    extract_features.main([*words(data, "ours"), "--device=cpu"])
    listed = [sorted(path.name for path in (data / side).iterdir()) for side in ("ours", "theirs")]
    assert listed[0] == listed[1]
    key: Key
    for name, key in (("test_imgs.img_feat.jsonl", "image_id"), ("test_texts.txt_feat.jsonl", "text_id")):
        our_ids, ours = read_features(data / "ours" / name, key)
        their_ids, theirs = read_features(data / "theirs" / name, key)
        assert our_ids == their_ids
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
        row = json.loads((data / "ours" / name).read_text().splitlines()[0])
        assert list(row) == [key, "feature"]
