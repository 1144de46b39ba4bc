"""The reference's own trainer and ours, side by side: two gloo ranks, 20 steps, the same files and flags.

The reference needs CUDA and NCCL; a small shim moves it to the CPU without touching its code. Its towers are made tiny
and free of dropout by writing other numbers under official names into a copy of the package; ours reads the same JSON.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from cn_clip.clip.model import build_model
from cn_clip.data.store import SplitWriter
from tests.training.conftest import CAPTIONS, png

pytestmark = [pytest.mark.parity, pytest.mark.slow]

ROOT = Path(__file__).resolve().parents[2]
IMAGE = {
    "embed_dim": 16, "image_resolution": 32, "vision_layers": 2, "vision_width": 64, "vision_patch_size": 8,
}  # fmt: skip
TEXT = {
    "vocab_size": 21128, "text_attention_probs_dropout_prob": 0.0, "text_hidden_act": "gelu",
    "text_hidden_dropout_prob": 0.0, "text_hidden_size": 32, "text_initializer_range": 0.02,
    "text_intermediate_size": 64, "text_max_position_embeddings": 512, "text_num_attention_heads": 2,
    "text_num_hidden_layers": 2, "text_type_vocab_size": 2,
}  # fmt: skip
SHIM = '''
import sys
import torch
import torch.distributed as dist
from torch import nn

torch.cuda.set_device = lambda *_: None
torch.Tensor.cuda = lambda tensor, *_, **__: tensor
nn.Module.cuda = lambda module, *_, **__: module
join, engine = dist.init_process_group, nn.parallel.DistributedDataParallel
dist.init_process_group = lambda backend=None, **options: join("gloo", **options)
nn.parallel.DistributedDataParallel = lambda model, device_ids=None, **options: engine(model, **options)


class Shared:
    """One environment a folder: it opens its stores anew each epoch, which today's lmdb refuses."""

    opened = {}

    def __init__(self, path, **options):
        if path not in self.opened:
            self.opened[path] = open_store(path, **options)
        self.begin, self.close = self.opened[path].begin, lambda: None


import lmdb

open_store, lmdb.open = lmdb.open, Shared
from cn_clip.training.main import main

main()
'''
NUM_PAIRS, STEPS = 37, 20


@dataclass(frozen=True)
class Side:
    """One trainer: how it is started, and where its runs lie."""

    script: Path
    package: Path
    towers: tuple[str, str]
    folder: Path
    """Of both sides: data, weights to start from, and a folder of runs for each."""
    settings: tuple[str, ...] = ()
    """Words that only this side is given."""

    def train(self, name: str, *words: str) -> Path:
        logs = self.folder / self.script.stem
        flags = [
            f"--train-data={self.folder / 'train'}", f"--val-data={self.folder / 'valid'}", "--num-workers=0",
            "--valid-num-workers=0", f"--logs={logs}", f"--name={name}", "--log-interval=1", "--batch-size=4",
            "--valid-batch-size=5", "--valid-step-interval=7", "--warmup=5", "--lr=1e-3", "--wd=0.01",
            "--precision=fp32", "--gather-with-grad", "--report-training-batch-acc", "--save-step-frequency=8",
            f"--vision-model={self.towers[0]}", f"--text-model={self.towers[1]}", *self.settings, *words,
        ]  # fmt: skip
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "--"]
        done = subprocess.run(
            [*torchrun, str(self.script), *flags],
            env={**os.environ, "PYTHONPATH": str(self.package)},
            capture_output=True,
            text=True,
            cwd=self.folder,
        )
        assert done.returncode == 0, done.stderr[-4000:]
        return logs / name


Sides = tuple[Side, Side]


@pytest.fixture(scope="module")
def sides(reference_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Sides:
    """The reference and ours, over the same data and towers."""
    folder = tmp_path_factory.mktemp("trainers")
    package = folder / "package"
    shutil.copytree(reference_dir, package)
    configs = package / "cn_clip" / "clip" / "model_configs"
    (configs / "ViT-B-32.json").write_text(json.dumps(IMAGE))
    (configs / "RBT3-chinese.json").write_text(json.dumps(TEXT))
    (folder / "shim.py").write_text(SHIM)
    for split, first in {"train": 0, "valid": 1000}.items():
        with SplitWriter(folder / split, "reference") as writer:
            for number in range(NUM_PAIRS):
                writer.add_image(first + number, png(first + number))
                writer.add_pair(first + number, number, f"{CAPTIONS[number % 7]}第{number}张")
    torch.manual_seed(0)
    towers = (str(configs / "ViT-B-32.json"), str(configs / "RBT3-chinese.json"))
    state = {f"module.{name}": value for name, value in build_model(*towers).state_dict().items()}
    torch.save({"epoch": 0, "step": 0, "name": "start", "state_dict": state}, folder / "start.pt")
    reference = Side(folder / "shim.py", package, ("ViT-B-32", "RBT3-chinese"), folder)
    # what docs/migration.md names for the reference's numbers
    settings = ("--set=data.transform=exact", "--set=data.epoch_end=reference")
    return reference, Side(ROOT / "cn_clip" / "training" / "main.py", ROOT, towers, folder, settings)


@pytest.fixture(scope="module")
def runs(sides: Sides) -> tuple[Path, Path]:
    """20 steps of each side from the same weights."""
    return tuple(
        side.train(
            "run",
            f"--resume={side.folder / 'start.pt'}",
            "--reset-optimizer",
            "--reset-data-offset",
            f"--max-steps={STEPS}",
        )
        for side in sides
    )


def lines(run: Path, kind: str) -> list[str]:
    """Log lines of a kind without what depends on the clock, oldest log first."""
    text = "".join(path.read_text(encoding="utf-8") for path in sorted(run.glob("out_*.log")))
    found = [line.split(" | ", 2)[2] for line in text.splitlines() if kind in line]
    return [re.sub(r"(Data|Batch) Time: \d+\.\d{3}s", r"\1 Time", line) for line in found]


def split_numbers(line: str) -> tuple[str, list[float]]:
    """A line with its numbers as `#`, and the numbers."""
    return re.sub(r"-?\d+(\.\d+)?", "#", line), [float(n) for n in re.findall(r"-?\d+(?:\.\d+)?", line)]


def assert_same_lines(theirs: list[str], ours: list[str], num: int) -> None:
    """The reference's logging thread may lose its last lines at exit, so it may lack two of them."""
    assert len(ours) == num and num - 2 <= len(theirs) <= num
    for one, other in zip(theirs, ours, strict=False):
        (form, numbers), (our_form, our_numbers) = split_numbers(one), split_numbers(other)
        assert form == our_form
        # the last printed digit may fall on the other side of a rounding
        assert our_numbers == pytest.approx(numbers, abs=2.1e-5), f"{one}\n{other}"


def state(run: Path, name: str = "epoch_latest.pt") -> dict:
    return torch.load(run / "checkpoints" / name, weights_only=False)


def test_train_lines_agree(runs: tuple[Path, Path]) -> None:
    theirs, ours = (lines(run, "Global Steps") for run in runs)
    assert_same_lines(theirs, ours, STEPS)


def test_validation_lines_agree(runs: tuple[Path, Path]) -> None:
    """Every seventh step, and at the end of each epoch of 5 steps, on each rank."""
    theirs, ours = (lines(run, "Validation Result") for run in runs)
    assert_same_lines(theirs, ours, 6)


def test_same_checkpoints_with_the_same_weights_and_moments(runs: tuple[Path, Path]) -> None:
    names = [sorted(path.name for path in (run / "checkpoints").iterdir()) for run in runs]
    assert names[0] == names[1]
    for name in names[0]:
        theirs, ours = (state(run, name) for run in runs)
        assert (theirs["epoch"], theirs["step"], theirs["name"]) == (
            ours["epoch"],
            ours["step"],
            ours["name"],
        )
        assert list(theirs["state_dict"].keys() ^ ours["state_dict"].keys()) == []
        for key, value in theirs["state_dict"].items():
            torch.testing.assert_close(ours["state_dict"][key], value, rtol=1e-3, atol=2e-4, msg=key)
        for number, moments in theirs["optimizer"]["state"].items():
            mine = ours["optimizer"]["state"][number]
            torch.testing.assert_close(mine["exp_avg"], moments["exp_avg"], rtol=1e-2, atol=1e-4)
            assert mine["step"] == moments["step"]


@pytest.mark.parametrize("saver", [0, 1])
def test_either_goes_on_from_the_others_checkpoint(runs: tuple[Path, Path], sides: Sides, saver: int) -> None:
    """Five more steps from the end of epoch 4, optimizer included, by auto-resume: the lines agree again."""
    names = ("theirs", "ours")
    gone_on = []
    for side in sides:
        name = f"from_{names[saver]}"
        (folder := side.folder / side.script.stem / name / "checkpoints").mkdir(parents=True)
        content = state(runs[saver])
        for group in content["optimizer"]["param_groups"]:
            group["lr"] = float(group["lr"])  # torch's safe reading refuses the numpy number of the reference
        torch.save(content, folder / "epoch_latest.pt")
        gone_on.append(side.train(name, f"--max-steps={STEPS + 5}"))
    theirs, ours = (lines(run, "Global Steps") for run in gone_on)
    assert_same_lines(theirs, ours, 5)
    said = [lines(run, "=> loaded checkpoint") for run in gone_on]
    assert [text[0].rpartition(" (")[2] for text in said] == ["epoch 4 @ 20 steps)"] * 2


def test_ours_reads_the_references_file_as_it_is(runs: tuple[Path, Path], sides: Sides) -> None:
    """With its numpy learning rate, which torch refuses to read safely unless it is told what it is."""
    (folder := sides[1].folder / "main" / "as_it_is" / "checkpoints").mkdir(parents=True)
    shutil.copy(runs[0] / "checkpoints" / "epoch_latest.pt", folder)
    gone_on = sides[1].train("as_it_is", f"--max-steps={STEPS + 1}")
    assert len(lines(gone_on, "Global Steps")) == 1
