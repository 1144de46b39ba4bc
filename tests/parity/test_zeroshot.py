"""Our zero-shot command against the reference's own script, run on the CPU with tiny towers and its own prompts."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cn_clip.clip.model import build_model
from cn_clip.clip.presets import MODEL_CONFIGS
from cn_clip.eval.zeroshot_evaluation import main
from data_tools.reference_templates import main as take_templates

RunReference = Callable[..., subprocess.CompletedProcess[str]]

# its script on a CPU and numpy 2: what would move to a GPU stays, a one-number array becomes a number;
# none of its code is touched
ON_CPU = """
import runpy, sys, warnings
warnings.filterwarnings("ignore")
sys.path.insert(0, sys.argv.pop(1))
import torch
move = torch.Tensor.to
torch.Tensor.to = lambda self, *words, **named: self if words and type(words[0]) is int else move(self, *words, **named)
torch.nn.Module.cuda = lambda self, *words, **named: self
torch.cuda.set_device = lambda *words: None
to_numpy = torch.Tensor.numpy
torch.Tensor.numpy = lambda self: to_numpy(self[0] if self.shape == (1,) else self)
import cn_clip.eval.zeroshot_evaluation as module
runpy.run_path(module.__file__, run_name="__main__")
"""
NAMES = [
    "金毛犬",
    "“波斯”猫",
    "BMW 3系",
    "小麦田",
    "向日葵",
    "A320",
    "麻婆豆腐",
    "数字7",
    "café",
    "城堡",
    "地铁",
    "茶壶",
]


@dataclass(frozen=True)
class Set:
    dataset: str
    image: str
    folder: Path
    weights: Path
    reference: Path
    """A copy of the reference whose presets of two names are our tiny towers."""

    def flags(self, *more: str) -> list[str]:
        words = ["--label-file", str(self.folder / "label_cn.txt"), "--datapath", str(self.folder / "test")]
        words += [
            "--dataset",
            self.dataset,
            "--resume",
            str(self.weights),
            "--img-batch-size",
            "7",
            "--num-workers",
            "0",
        ]
        return [*words, "--index", str(self.folder / "index.json"), *more]


@pytest.fixture(scope="module", params=[("tiny-vit", "imagenet"), ("tiny-resnet", "country211")])
def data(
    request: pytest.FixtureRequest, reference_dir: Path, tmp_path_factory: pytest.TempPathFactory
) -> Set:
    image, dataset = request.param
    folder = tmp_path_factory.mktemp("zeroshot")
    rng = np.random.default_rng(0)
    for number in range(len(NAMES)):
        place = folder / "test" / f"{number:03d}"
        place.mkdir(parents=True)
        for i, mode in enumerate(("RGB", "P", "L")):
            pixels = rng.integers(0, 256, (20 + 9 * i, 40, 3), dtype=np.uint8)
            Image.fromarray(pixels).convert(mode).save(place / f"{i}.png")
    (folder / "label_cn.txt").write_text("".join(f"{name}\n" for name in NAMES), encoding="utf-8")
    (folder / "index.json").write_text(json.dumps(list(reversed(range(3 * len(NAMES))))))
    torch.manual_seed(0)
    model = build_model(image, "tiny-bert")
    weights = {f"module.{name}": tensor for name, tensor in model.state_dict().items()}
    torch.save({"epoch": 3, "step": 40, "name": "x", "state_dict": weights}, folder / "tiny.pt")
    reference = copy_with_tiny_towers(reference_dir, folder / "reference", image)
    return Set(dataset, image, folder, folder / "tiny.pt", reference)


def copy_with_tiny_towers(reference_dir: Path, folder: Path, image: str) -> Path:
    shutil.copytree(reference_dir / "cn_clip", folder / "cn_clip")
    for name, ours in (("ViT-B-16", image), ("RBT3-chinese", "tiny-bert")):
        settings = json.loads((MODEL_CONFIGS / f"{ours}.json").read_text())
        (folder / "cn_clip" / "clip" / "model_configs" / f"{name}.json").write_text(json.dumps(settings))
    return folder


@pytest.mark.parity
def test_predictions_and_accuracy_agree(
    data: Set,
    run_reference: RunReference,
    reference_dir: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    templates, theirs, ours = tmp_path / "templates.json", tmp_path / "theirs", tmp_path / "ours"
    take_templates(["--reference", str(reference_dir), "--output", str(templates)])
    theirs.mkdir()
    flags = data.flags("--text-model", "RBT3-chinese", "--save-dir", str(theirs))
    printed = run_reference(ON_CPU, data.reference, *flags, "--vision-model", "ViT-B-16").stdout

    capsys.readouterr()
    tiny = ["--vision-model", data.image, "--text-model", "tiny-bert", "--template-file", str(templates)]
    main([*data.flags("--save-dir", str(ours)), *tiny, "--device", "cpu"])
    lines = capsys.readouterr().out.splitlines()

    assert lines[-3:] == printed.splitlines()[-3:]  # Result:, zeroshot-top1: ..., Finished.
    assert f"=> loaded checkpoint '{data.weights}' (epoch 3 @ 40 steps)" in lines
    compare(
        (theirs / f"{data.dataset}.json").read_text(), (ours / f"{data.dataset}.json").read_text(), data.image
    )


def compare(theirs: str, ours: str, image: str) -> None:
    expected, found = json.loads(theirs), json.loads(ours)
    assert list(found) == list(expected)
    assert found["model_name"] == f"CN-CLIP-{image}"
    for name in set(expected) - {"model_name", "predictions"}:
        assert found[name] == expected[name], name
    np.testing.assert_allclose(found["predictions"], expected["predictions"], atol=3e-6)
    # to the character, numbers aside: theirs written by our writer is their file
    assert json.dumps(expected) == theirs and json.dumps(found) == ours


@pytest.mark.parity
def test_prompts_are_taken_as_text_not_run(reference_dir: Path, tmp_path: Path) -> None:
    output = tmp_path / "templates.json"
    take_templates(["--reference", str(reference_dir), "--output", str(output), "--every-set"])
    sets = json.loads(output.read_text(encoding="utf-8"))
    counts = {name: len(templates) for name, templates in sets.items()}
    assert counts["default"] == 183
    assert counts["fgvc-aircraft-2013b-variants102"] == 100
    assert counts["food-101"] == 21 and counts["oxford-flower-102"] == 32
    assert counts["eurosat_clip"] == counts["resisc45_clip"] == 24 and counts["country211"] == 4
    assert counts["imagenet"] == 80 and len(counts) == 17


@pytest.mark.parity
def test_filled_prompts_are_the_references(
    run_reference: RunReference, reference_dir: Path, tmp_path: Path
) -> None:
    from cn_clip.eval.zeroshot.templates import choose_templates, fill

    code = """
import json, sys
from cn_clip.eval import cvinw_zeroshot_templates as prompts
sets = {"imagenet": prompts.openai_templates, "food-101": prompts.food_templates,
        "eurosat_clip": prompts.eurosat_templates, "country211": prompts.country211_templates}
json.dump({name: [template("猫{}") for template in templates] for name, templates in sets.items()}, open(sys.argv[1], "w"))
"""
    output, answer = tmp_path / "templates.json", tmp_path / "filled.json"
    take_templates(["--reference", str(reference_dir), "--output", str(output)])
    run_reference(code, answer)
    for name, filled in json.loads(answer.read_text()).items():
        assert fill(choose_templates(name, output), "猫{}") == filled
