"""A recipe's script for real, with tiny towers and data of the recipe's layout."""

from __future__ import annotations

import base64
import io
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = f"{ROOT}/run_scripts/muge_finetune_vit-b-16_rbt-base_flip.sh"
TINY = (
    "--vision-model=tiny-vit",
    "--text-model=tiny-bert",
    "--set",
    "model.init_from=null",
    "--batch-size=4",
    "--valid-batch-size=4",
    "--num-workers=0",
    "--valid-num-workers=0",
    "--precision=fp32",
    "--set",
    "log.tensorboard=false",
)

Bash = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def datapath(tmp_path: Path) -> Path:
    """DATAPATH with a MUGE of 16 pairs in each split."""
    folder = tmp_path / "datapath" / "datasets" / "MUGE"
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for split in ("train", "valid"):
        rows, texts = [], []
        for number in range(16):
            png = io.BytesIO()
            Image.fromarray(rng.integers(0, 255, (32, 32, 3), dtype=np.uint8)).save(png, "PNG")
            rows.append(f"{number}\t{base64.b64encode(png.getvalue()).decode()}\n")
            texts.append(
                json.dumps({"text_id": number, "text": f"图片{number}", "image_ids": [number]}) + "\n"
            )
        (folder / f"{split}_imgs.tsv").write_text("".join(rows))
        (folder / f"{split}_texts.jsonl").write_text("".join(texts))
    door = f"{ROOT}/cn_clip/preprocess/build_lmdb_dataset.py"
    subprocess.run(
        [sys.executable, door, "--data_dir", folder, "--splits", "train,valid"],
        check=True,
        capture_output=True,
    )
    return tmp_path / "datapath"


@pytest.mark.slow
@pytest.mark.parametrize("ranks", ["auto", "2"])
def test_a_recipe_trains_and_a_requeued_job_goes_on(ranks: str, bash: Bash, datapath: Path) -> None:
    run_dir = datapath / "experiments" / "muge_finetune_vit-b-16_roberta-base_bs128_8gpu_flip"
    done = bash(SCRIPT, str(datapath), *TINY, "--max-epochs=1", GPUS_PER_NODE=ranks)
    assert done.returncode == 0, done.stderr[-3000:]
    assert (run_dir / "checkpoints" / "epoch1.pt").exists()
    again = bash(SCRIPT, str(datapath), *TINY, "--max-epochs=2", GPUS_PER_NODE=ranks)
    assert again.returncode == 0, again.stderr[-3000:]
    assert "=> loaded checkpoint" in again.stderr
    assert (run_dir / "checkpoints" / "epoch2.pt").exists()
    steps = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    num_steps = 8 if ranks == "auto" else 4
    assert [row["step"] for row in steps if row["kind"] == "train"] == list(range(1, num_steps + 1))


@pytest.mark.slow
def test_a_recipe_without_its_weights_says_which_file_is_missing(bash: Bash, datapath: Path) -> None:
    done = bash(SCRIPT, str(datapath), GPUS_PER_NODE="1")
    assert done.returncode == 2
    (sentence,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert "pretrained_weights/clip_cn_vit-b-16.pt" in sentence
    assert not (datapath / "experiments").exists() or not list((datapath / "experiments").rglob("*.pt"))
