"""How long training stands still for a checkpoint: ours in the background, ours at once, and the reference's way.

    python tests/benchmarks/checkpoint_pause.py --reference DIR [--folder DISK]
        # DIR: pip install --no-deps --target DIR cn-clip==1.6.0 six

The model with its AdamW moments is saved after a step as a run saves it, under the step's name and as the latest; `--folder` is
on the disk that counts. Ours copies all tensors, then writes one file in a thread and links the second name to it, while
further steps are trained: what they take longer than before is told too. The reference writes both files one after the other
and does nothing else meanwhile; it leaves them to the page cache, where ours waits for the disk.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import threading
import time
from argparse import Namespace
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
from sides import ROOT, Answer, Side, add_flags, middle, serve, sides, words_of
from towers_and_pairs import fields, pairs

LATEST = "epoch_latest.pt"


def main() -> None:
    flags = parse()
    if flags.program:
        torch.set_num_threads(flags.threads)
        serve(Ours(flags).answer if flags.program == "ours" else Reference(flags).answer)
    packages = {"ours": ROOT} | ({"reference": flags.reference} if flags.reference else {})
    with tempfile.TemporaryDirectory(dir=flags.folder) as folder:
        flags.folder = folder
        with sides(__file__, packages, words_of(flags), flags.threads) as both:
            report(both, flags)


def parse() -> Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--reference", type=Path, default=os.environ.get("CN_CLIP_REFERENCE_DIR"))
    parser.add_argument(
        "--folder", help="where files are written; the system's own for temporary ones by default"
    )
    parser.add_argument("--image", default="ViT-B-16")
    parser.add_argument("--text", default="RoBERTa-wwm-ext-base-chinese")
    parser.add_argument("--layers", type=int, help="of each tower instead of its own, for a quick look")
    parser.add_argument("--pairs", type=int, default=2, help="of a step")
    add_flags(parser)
    return parser.parse_args()


def report(both: dict[str, Side], flags: Namespace) -> None:
    """Ask in turn and print."""
    asked: dict[str, tuple[Side, dict[str, Any]]] = {
        "ours, in the background": (both["ours"], {"asynchronous": True}),
        "ours, at once": (both["ours"], {"asynchronous": False}),
    }
    if "reference" in both:
        asked["reference"] = (both["reference"], {})
    answers: dict[str, list[Answer]] = defaultdict(list)
    for turn in range(flags.turns + 1):
        for name, (side, words) in asked.items():
            answer = side.ask(**words)
            answers[name] += [answer] if turn else []
    first = answers["ours, at once"][0]
    print(f"{first['parameters'] / 1e6:.0f} million parameters, a file of {first['bytes'] / 1e9:.2f} GB")
    for name, many in answers.items():
        line = f"  {name:24} training stands still for {middle(many, 'pause'):6.2f} s, written after {middle(many, 'written'):6.2f} s"
        if "slower" in many[0]:
            line += (
                f"; meanwhile {middle(many, 'steps'):.0f} steps, together {middle(many, 'slower'):.2f} s slower "
                f"than before ({middle(many, 'step'):.2f} s each)"
            )
        print(line, flush=True)


class Ours:
    def __init__(self, flags: Namespace) -> None:
        from our_step import OurStep

        from cn_clip.training.checkpoints import RunState
        from cn_clip.training.run_dir import RunDir

        self._flags, self._fields, self._number = flags, fields(flags.image, flags.text, flags.layers), 0
        self._ours = OurStep(self._fields, time.perf_counter)
        self._step()  # AdamW has its moments
        self._state = RunState("run", self._ours.engine("amp_bf16"), {})
        self._run_dir = RunDir(flags.folder, "run", writes=True)

    def answer(self, asynchronous: bool) -> Answer:
        from cn_clip.config.schema import Checkpoint
        from cn_clip.training.plan import Plan
        from cn_clip.training.saving import Saver

        usual = statistics.median(self._step() for _ in range(3))
        settings = Checkpoint(asynchronous=asynchronous, every_steps=1)
        plan = Plan(steps_per_epoch=10**6, first_step=0, max_steps=10**6)
        with Saver(settings, self._state, self._run_dir, plan) as saver:
            arrival = Arrival(self._run_dir.checkpoints / LATEST)
            began = time.perf_counter()
            saver.after_step(self._number, 1, False)
            pause = time.perf_counter() - began
            steps = []
            while asynchronous and arrival.seconds is None:
                steps.append(self._step())
        path = self._run_dir.checkpoints / LATEST
        delete_all_but_newest(self._run_dir.checkpoints)
        found = {"pause": pause, "written": arrival.wait(), "bytes": path.stat().st_size}
        found["parameters"] = sum(parameter.numel() for parameter in self._ours.model.parameters())
        if asynchronous:
            found |= {"steps": len(steps), "slower": sum(steps) - usual * len(steps), "step": usual}
        return found

    def _step(self) -> float:
        self._number += 1
        batch = pairs(self._flags.pairs, self._fields["image_resolution"], self._number)
        return self._ours.seconds([batch], "amp_bf16", trim=True)["seconds"]


def delete_all_but_newest(folder: Path) -> None:
    """Of the steps' files: what a run would keep, where there is no room for it. Not timed."""
    *old, _ = sorted(folder.glob("epoch_1_*.pt"), key=lambda path: path.stat().st_mtime)
    for path in old:
        path.unlink()


class Arrival:
    """When a file is there anew."""

    def __init__(self, path: Path) -> None:
        self.seconds: float | None = None
        """Since this was made; None until then."""
        self._path, self._before, self._began = path, _identity(path), time.perf_counter()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def wait(self) -> float:
        self._thread.join()
        assert self.seconds is not None
        return self.seconds

    def _watch(self) -> None:
        while _identity(self._path) == self._before:
            time.sleep(0.005)
        self.seconds = time.perf_counter() - self._began


def _identity(path: Path) -> int:
    return path.stat().st_ino if path.exists() else 0


class Reference:
    """`cn_clip` is the reference here. Its trainer saves in the middle of its loop; these are the same two files."""

    def __init__(self, flags: Namespace) -> None:
        from cn_clip.clip.model import CLIP

        torch.manual_seed(0)
        self._model = CLIP(**fields(flags.image, flags.text, flags.layers))
        self._optimizer = torch.optim.AdamW(self._model.parameters())
        for parameter in self._model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        self._optimizer.step()  # AdamW has its moments
        self._folder, self._number = Path(flags.folder), 0

    def answer(self) -> Answer:
        self._number += 1
        began = time.perf_counter()
        for name in (f"epoch_1_{self._number}.pt", LATEST):
            content = {
                "epoch": 1,
                "step": self._number,
                "name": "run",
                "state_dict": self._model.state_dict(),
                "optimizer": self._optimizer.state_dict(),
            }
            torch.save(content, self._folder / name)
        seconds = time.perf_counter() - began
        delete_all_but_newest(self._folder)
        return {"pause": seconds, "written": seconds}


if __name__ == "__main__":
    main()
