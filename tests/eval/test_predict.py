from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from cn_clip.errors import ConfigError, DataError, DeviceError
from cn_clip.eval import make_topk_predictions, make_topk_predictions_tr
from cn_clip.eval.features.files import write_features

ROOT = Path(__file__).parents[2]


@pytest.fixture
def words(tmp_path: Path) -> list[str]:
    """Flags of a search among 4 images for 2 texts."""
    images = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0], [0.0, 1.0]])
    write_features(tmp_path / "i.jsonl", "image_id", [([40, 10, 30, 20], images)])
    write_features(tmp_path / "t.jsonl", "text_id", [([2, 1], images[:2])])
    paths = {"image-feats": "i.jsonl", "text-feats": "t.jsonl", "output": "o.jsonl"}
    return [f"--{flag}={tmp_path / name}" for flag, name in paths.items()]


def rows(tmp_path: Path) -> list[dict]:
    return [json.loads(line) for line in (tmp_path / "o.jsonl").read_text().splitlines()]


def test_images_for_texts(tmp_path: Path, words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    make_topk_predictions.main([*words, "--top-k", "3"])
    assert rows(tmp_path) == [
        {"text_id": 2, "image_ids": [40, 30, 10]},
        {"text_id": 1, "image_ids": [10, 20, 30]},
    ]
    out = capsys.readouterr().out
    assert out.startswith("Params:\n  device: auto\n  eval_batch_size: 32768\n  image_feats: ")
    assert out.endswith(f"Top-3 predictions are saved in {tmp_path / 'o.jsonl'}\nDone!\n")


def test_texts_for_images(tmp_path: Path, words: list[str]) -> None:
    make_topk_predictions_tr.main([*words, "--top-k", "1", "--eval-batch-size", "1"])
    assert rows(tmp_path) == [
        {"image_id": 40, "text_ids": [2]},
        {"image_id": 10, "text_ids": [1]},
        {"image_id": 30, "text_ids": [2]},
        {"image_id": 20, "text_ids": [1]},
    ]


def test_a_gallery_smaller_than_k_is_listed_whole(
    tmp_path: Path, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    make_topk_predictions.main(words)
    assert [len(row["image_ids"]) for row in rows(tmp_path)] == [4, 4]
    assert "There are only 4 images: each text lists all of them." in capsys.readouterr().out


def test_features_of_two_models_are_refused(tmp_path: Path, words: list[str]) -> None:
    write_features(tmp_path / "t.jsonl", "text_id", [([1], torch.ones(1, 3))])
    with pytest.raises(DataError, match="features of 2 numbers and .* of 3"):
        make_topk_predictions.main(words)
    assert not (tmp_path / "o.jsonl").exists()


@pytest.mark.parametrize("flag", ["--top-k", "--eval-batch-size"])
def test_counts_below_one_are_refused(words: list[str], flag: str) -> None:
    with pytest.raises(ConfigError, match=f"{flag} is 0"):
        make_topk_predictions.main([*words, flag, "0"])


def test_a_device_that_is_not_there(words: list[str]) -> None:
    with pytest.raises(DeviceError, match="--device nonsense cannot be used"):
        make_topk_predictions.main([*words, "--device", "nonsense"])


def test_repeated_gallery_ids_are_warned_of(
    tmp_path: Path, words: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    write_features(tmp_path / "i.jsonl", "image_id", [([1, 1, 2], torch.ones(3, 2))])
    make_topk_predictions.main(words)
    assert "1 of the 3 image_ids occur more than once" in caplog.text


@pytest.mark.parametrize(
    "door",
    [
        "extract_features",
        "make_topk_predictions",
        "make_topk_predictions_tr",
        "evaluation",
        "evaluation_tr",
        "transform_ir_annotation_to_tr",
        "write_report",
    ],
)
def test_help_needs_no_torch(door: str, tmp_path: Path) -> None:
    code = (
        "import runpy, sys\n"
        "sys.argv = [sys.argv[1], '--help']\n"
        "try: runpy.run_path(sys.argv[0], run_name='__main__')\n"
        "finally: print('torch' in sys.modules)"
    )
    path = ROOT / "cn_clip" / "eval" / f"{door}.py"
    done = subprocess.run([sys.executable, "-c", code, path], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("usage:") and done.stdout.endswith("False\n")
