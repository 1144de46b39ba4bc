"""Seconds of each stage of the quickstart, ours and the reference's, on the same data and towers in one run.

    python tests/benchmarks/quickstart_stages.py --reference DIR --folder QUICKSTART
        # DIR: pip install --no-deps --target DIR cn-clip==1.6.0 six
        # QUICKSTART: a finished folder of run_scripts/quickstart.sh; its pictures, captions and last checkpoint are read

Each stage is its commands, start-up included, ours and then the reference's; the median of the repeats counts.
Training is seconds per step instead: the mean `Batch Time` of the log over `--steps` steps after one warm-up step.
The reference needs CUDA and NCCL: a shim moves it to the CPU, where it trains in fp32, and its code stays as it is. Its
RN50 and RBT3-chinese get the quickstart's numbers in a copy of the package, and its prompts are the quickstart's one.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PRESETS = "cn_clip/clip/model_configs"
NEEDS_CUDA = (
    "training/main.py",
    "extract_features.py",
    "predictions.py",
    "predictions_tr.py",
    "zeroshot_evaluation.py",
)

# argv: door, then its words; what a door does not need is not changed, so that it pays for nothing
ON_CPU = """
import runpy, sys
sys.argv = sys.argv[1:]
door = sys.argv[0].rpartition("cn_clip/")[2]
import torch
torch.cuda.set_device = lambda *_: None
torch.Tensor.cuda = torch.nn.Module.cuda = lambda self, *_, **__: self
if door.startswith("training"):
    import lmdb
    import torch.distributed as dist
    join, engine, open_store = dist.init_process_group, torch.nn.parallel.DistributedDataParallel, lmdb.open
    dist.init_process_group = lambda backend=None: join("gloo", store=dist.HashStore(), rank=0, world_size=1)
    torch.nn.parallel.DistributedDataParallel = lambda model, device_ids=None, **options: engine(model, **options)

    class Shared:  # one environment a folder: it opens its stores anew each epoch, which today's lmdb refuses
        opened = {}

        def __init__(self, path, **options):
            if path not in self.opened:
                self.opened[path] = open_store(path, **options)
            self.begin, self.close = self.opened[path].begin, lambda: None

    lmdb.open = Shared
if door.startswith("eval/zeroshot"):  # .to(0) stays here; numpy 2 makes no number of a one-number array
    move, to_numpy = torch.Tensor.to, torch.Tensor.numpy
    torch.Tensor.to = lambda self, *words, **named: self if words and type(words[0]) is int else move(self, *words, **named)
    torch.Tensor.numpy = lambda self: to_numpy(self[0] if self.shape == (1,) else self)
    import cn_clip.eval.cvinw_zeroshot_templates as prompts
    prompts.openai_templates = [lambda name: name]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


class StageError(Exception):
    """A command ended badly; holds the last line it said."""


@dataclass(frozen=True)
class Side:
    """One program, and the folder that all its commands run in."""

    package: Path
    towers: tuple[str, str]
    folder: Path
    shim: bool
    """Whether what wants CUDA is started through ON_CPU."""

    def run(self, door: str, *words: object) -> float:
        """Seconds of a command; StageError when it fails."""
        script = str(self.package / "cn_clip" / door)
        start = ["-c", ON_CPU, script] if self.shim and door.endswith(NEEDS_CUDA) else [script]
        started = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-W", "ignore", *start, *map(str, words)],
            env={**os.environ, **self.variables()},
            cwd=self.folder,
            capture_output=True,
            text=True,
        )
        seconds = time.perf_counter() - started
        if done.returncode != 0:
            raise StageError((done.stderr.strip() or "no message").splitlines()[-1])
        return seconds

    def variables(self) -> dict[str, str]:
        rank = {"LOCAL_RANK": "0"} if self.shim else {}  # all that the reference reads itself of torchrun's
        return {"PYTHONPATH": str(self.package), "QUICKSTART": str(self.folder), **rank}

    def tower_flags(self) -> list[str]:
        return [f"--vision-model={self.towers[0]}", f"--text-model={self.towers[1]}", "--context-length=32"]

    # the commands of run_scripts/quickstart.sh

    def build_lmdb(self) -> float:
        shutil.rmtree(self.folder / "lmdb", ignore_errors=True)
        words = ("--data_dir", "data", "--splits", "train,valid,test", "--lmdb_dir", "lmdb")
        return self.run("preprocess/build_lmdb_dataset.py", *words)

    def extract(self) -> float:
        return self.run(
            "eval/extract_features.py",
            *(
                "--extract-image-feats",
                "--image-data=lmdb/test/imgs",
                "--image-feat-output-path=images.jsonl",
            ),
            *(
                "--extract-text-feats",
                "--text-data=data/test_texts.jsonl",
                "--text-feat-output-path=texts.jsonl",
            ),
            *("--resume=epoch_latest.pt", "--precision=fp32", *self.tower_flags()),
        )

    def search(self) -> float:
        words = ("--image-feats=images.jsonl", "--text-feats=texts.jsonl", "--top-k=10")
        to_image = self.run("eval/make_topk_predictions.py", *words, "--output=found_images.jsonl")
        return to_image + self.run("eval/make_topk_predictions_tr.py", *words, "--output=found_texts.jsonl")

    def evaluate(self) -> float:
        truth = "data/test_texts.jsonl"
        to_image = self.run("eval/evaluation.py", truth, "found_images.jsonl", "recall_images.json")
        turned = self.run("eval/transform_ir_annotation_to_tr.py", "--input", truth)
        truth = "data/test_texts.tr.jsonl"
        to_text = self.run("eval/evaluation_tr.py", truth, "found_texts.jsonl", "recall_texts.json")
        return to_image + turned + to_text

    def zeroshot(self) -> float:
        prompts = [] if self.shim else ["--template-file=data/zeroshot/templates.json"]
        return self.run(
            "eval/zeroshot_evaluation.py",
            *("--datapath=data/zeroshot/test", "--label-file=data/zeroshot/label_cn.txt", "--dataset=emoji"),
            *("--save-dir=.", "--resume=epoch_latest.pt", "--precision=fp32", "--num-workers=0"),
            *(*self.tower_flags(), *prompts),
        )

    def train(self, steps: int, *words: str) -> float:
        """Seconds per step over `steps` steps after the first."""
        shutil.rmtree(self.folder / "run", ignore_errors=True)
        data = ["--train-data=lmdb/train", "--num-workers=1", "--batch-size=256"]
        fixed = [*data, "--logs=.", "--name=run", "--log-interval=1", f"--max-steps={steps + 1}"]
        self.run("training/main.py", *fixed, *self.tower_flags(), *words)
        log = "".join(path.read_text(encoding="utf-8") for path in (self.folder / "run").glob("out_*.log"))
        seconds = [float(number) for number in re.findall(r"Batch Time: ([\d.]+)s", log)]
        if len(seconds) != steps + 1:
            raise StageError(f"{len(seconds)} of {steps + 1} steps are in the log")
        return statistics.mean(seconds[1:])

    def scores(self) -> str:
        """What it found, to see that both did the same work."""
        recalls = []
        for name in ("recall_images.json", "recall_texts.json"):
            path = self.folder / name
            recalls.append(f"{json.loads(path.read_text())['score']:.2f}" if path.exists() else "none")
        return " / ".join(recalls)


@dataclass(frozen=True)
class Stage:
    name: str
    ours: Callable[[], float]
    reference: Callable[[], float]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--reference", type=Path, default=os.environ.get("CN_CLIP_REFERENCE_DIR"))
    parser.add_argument("--folder", type=Path, required=True, help="of a finished quickstart")
    parser.add_argument("--steps", type=int, default=20, help="of training that are timed")
    parser.add_argument("--repeat", type=int, default=3)
    flags = parser.parse_args()
    if not flags.reference:
        parser.error("--reference DIR or CN_CLIP_REFERENCE_DIR must name the folder of the reference package")
    with tempfile.TemporaryDirectory() as folder:
        ours, reference = prepare(Path(folder), flags.reference.resolve(), flags.folder.resolve())
        print("| stage | ours s | reference s | ratio |\n|---|---|---|---|")
        for stage in stages(ours, reference, flags.steps):
            print(row(stage, flags.repeat), flush=True)
        print(
            f"mean recall, text to image / image to text: ours {ours.scores()}, reference {reference.scores()}"
        )


def prepare(folder: Path, reference: Path, quickstart: Path) -> tuple[Side, Side]:
    """Ours and the reference, each with a copy of the data and of the checkpoint."""
    package = folder / "package"
    shutil.copytree(reference / "cn_clip", package / "cn_clip")
    shutil.copy(reference / "six.py", package)
    image = json.loads((ROOT / PRESETS / "quickstart-resnet.json").read_text())
    image["vision_layers"] = json.dumps(image["vision_layers"])  # its own RN50 has them as text
    (package / PRESETS / "RN50.json").write_text(json.dumps(image))
    shutil.copy(ROOT / PRESETS / "quickstart-bert.json", package / PRESETS / "RBT3-chinese.json")
    for side in ("ours", "reference"):
        shutil.copytree(quickstart / "data", folder / side / "data")
        shutil.copy(quickstart / "run/checkpoints/epoch_latest.pt", folder / side)
    return (
        Side(ROOT, ("quickstart-resnet", "quickstart-bert"), folder / "ours", shim=False),
        Side(package, ("RN50", "RBT3-chinese"), folder / "reference", shim=True),
    )


def stages(ours: Side, reference: Side, steps: int) -> list[Stage]:
    config = f"--config={ROOT / 'configs' / 'quickstart.yaml'}"
    exact = (
        *("--precision=fp32", "--set", "data.transform=exact", "--set", "data.augment=none"),
        *("--set", "loss.targets=diagonal"),
    )

    def plainly() -> float:  # fp32 is all that the reference has on a CPU
        rates = ("--lr=2e-3", "--beta2=0.98", "--warmup=50", "--wd=0.05")
        return reference.train(steps, "--precision=fp32", "--report-training-batch-acc", *rates)

    return [
        Stage("build LMDB", ours.build_lmdb, reference.build_lmdb),
        Stage("a training step, as the quickstart", lambda: ours.train(steps, config), plainly),
        Stage("a training step, fp32 + exact", lambda: ours.train(steps, config, *exact), plainly),
        Stage("extract features", ours.extract, reference.extract),
        Stage("top-k both ways", ours.search, reference.search),
        Stage("evaluation both ways", ours.evaluate, reference.evaluate),
        Stage("zero-shot", ours.zeroshot, reference.zeroshot),
    ]


def row(stage: Stage, repeat: int) -> str:
    """Line of the table: medians of turns, ours and the reference's; a side that cannot run says why."""
    sides: dict[str, list[float]] = {"ours": [], "reference": []}
    said: dict[str, str] = {}
    for _ in range(repeat):
        for name, run in (("ours", stage.ours), ("reference", stage.reference)):
            try:
                sides[name].append(run())
            except StageError as error:
                said[name] = f"cannot run: {error}"
    medians = {name: statistics.median(seconds) for name, seconds in sides.items() if name not in said}
    cells = [said.get(name) or f"{medians[name]:.3f}" for name in sides]
    ratio = f"{medians['reference'] / medians['ours']:.2f} ×" if len(medians) == 2 else ""
    return f"| {stage.name} | {cells[0]} | {cells[1]} | {ratio} |"


if __name__ == "__main__":
    main()
