from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

from cn_clip.clip.model import build_model
from cn_clip.errors import CnClipError
from cn_clip.eval.zeroshot_evaluation import main

RunOurs = Callable[..., subprocess.CompletedProcess[str]]
DOOR = "cn_clip/eval/zeroshot_evaluation.py"


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Flags of a set of two classes and a tiny model; tests replace some."""
    folder = tmp_path_factory.mktemp("set")
    for number, colour in enumerate(("red", "blue")):
        for i in range(2):
            place = folder / "test" / f"{number:03d}" / f"{i}.png"
            place.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (20 + i, 20), colour).save(place)
    (folder / "label_cn.txt").write_text("红色\n蓝色\n", encoding="utf-8")
    torch.manual_seed(0)
    torch.save(build_model("tiny-vit", "tiny-bert").state_dict(), folder / "weights.pt")
    return {
        "--vision-model": "tiny-vit",
        "--text-model": "tiny-bert",
        "--label-file": str(folder / "label_cn.txt"),
        "--datapath": str(folder / "test"),
        "--dataset": "colours",
        "--save-dir": str(folder / "out"),
        "--resume": str(folder / "weights.pt"),
        "--num-workers": "0",
        "--device": "cpu",
    }


def flat(words: dict[str, str]) -> list[str]:
    return [word for pair in words.items() for word in pair]


def test_prints_parameters_and_result_and_writes_predictions(
    words: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    main(flat(words))
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "Params:" and lines[1] == "  context_length: 52"
    assert f"=> loaded checkpoint '{words['--resume']}'" in lines  # a file of weights alone names no epoch
    assert "4 pictures, 2 classes, 40 prompts each" in lines
    assert lines[-3] == "Result:" and lines[-1] == "Finished."
    top1 = float(lines[-2].removeprefix("zeroshot-top1: "))
    saved = json.loads((Path(words["--save-dir"]) / "colours.json").read_text())
    predictions = torch.tensor(saved["predictions"][0])
    assert predictions.shape == (4, 2)
    assert top1 == (predictions.argmax(1) == torch.tensor([0, 0, 1, 1])).float().mean()


def test_index_orders_the_saved_predictions_only(
    words: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "index.json").write_text("[3, 0]")
    main(flat(words))
    plain = capsys.readouterr().out.splitlines()
    main(flat(words | {"--index": str(tmp_path / "index.json"), "--save-dir": str(tmp_path)}))
    assert capsys.readouterr().out.splitlines()[-2] == plain[-2]
    every = json.loads((Path(words["--save-dir"]) / "colours.json").read_text())["predictions"][0]
    assert json.loads((tmp_path / "colours.json").read_text())["predictions"][0] == [every[3], every[0]]


def test_the_learned_scale_softens_predictions(
    words: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(flat(words | {"--scale": "model", "--save-dir": str(tmp_path)}))
    soft = torch.tensor(json.loads((tmp_path / "colours.json").read_text())["predictions"][0])
    sharp = torch.tensor(
        json.loads((Path(words["--save-dir"]) / "colours.json").read_text())["predictions"][0]
    )
    assert (soft.max(1).values < sharp.max(1).values).all()  # 1/0.07 against 100


@pytest.mark.parametrize(
    ("flag", "value", "message"),
    [
        ("--label-file", "/nowhere.txt", "label file /nowhere.txt"),
        ("--datapath", "/nowhere", "/nowhere is not a folder"),
        ("--resume", "/nowhere.pt", "/nowhere.pt"),
        ("--template-file", "/nowhere.json", "template file /nowhere.json"),
        ("--index", "/nowhere.json", "index /nowhere.json"),
        ("--vision-model", "ViT-B-61", "ViT-B-16"),
        ("--text-model", "RBT33", "RBT33"),
        ("--device", "cuda:99", "cuda:99"),
        ("--context-length", "1", "context_length is 1"),
        ("--img-batch-size", "0", "^--img-batch-size is 0, which should be at least 1$"),
        ("--num-workers", "-1", "^--num-workers is -1, which should be 0 or more$"),
        ("--vision-model", "tiny-resnet", "image tower tiny-vit"),
    ],
)
def test_bad_flags_are_one_sentence_and_write_nothing(
    flag: str, value: str, message: str, words: dict[str, str], tmp_path: Path
) -> None:
    with pytest.raises(CnClipError, match=message):
        main(flat(words | {"--save-dir": str(tmp_path), flag: value}))
    assert list(tmp_path.iterdir()) == []


def test_by_path_from_anywhere(words: dict[str, str], run_ours: RunOurs) -> None:
    done = run_ours(DOOR, *flat(words | {"--datapath": "/nowhere"}))
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("error: /nowhere is not a folder")


def test_help_is_answered_without_torch(run_ours: RunOurs) -> None:
    done = run_ours(DOOR, "--help", PYTHONPROFILEIMPORTTIME="1")
    assert done.returncode == 0 and "--template-file" in done.stdout
    imported = {
        line.rpartition("|")[2].strip()
        for line in done.stderr.splitlines()
        if line.startswith("import time:")
    }
    assert "cn_clip.eval.zeroshot.flags" in imported
    assert not {"torch", "numpy", "PIL", "yaml"} & imported
