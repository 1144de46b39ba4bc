"""Where the checks work: a device, towers of a size that suits it, made-up pairs, and runs of the trainer over them."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from cn_clip.config.load import merge
from cn_clip.config.schema import TrainConfig
from cn_clip.data.batches import PairBatch
from cn_clip.data.store import SplitWriter
from cn_clip.parallel.ranks import Ranks
from cn_clip.training.contrastive_task import ContrastiveTask
from cn_clip.training.diagnosis.examine import config_of
from cn_clip.training.diagnosis.trial import made_up_pairs, trial_task
from cn_clip.training.main import main

ROOT = Path(__file__).resolve().parents[2]
NUM_PAIRS = 32
BATCH = 16
"""Of the trainer's runs."""
TINY = {
    "model.image": "tiny-vit",
    "model.text": "tiny-bert",
    "train.batch_size": 8,
    "data.context_length": 12,
}
REAL = {"model.image": "ViT-B-16", "model.text": "RoBERTa-wwm-ext-base-chinese", "train.batch_size": 64}
"""Settings of timed steps."""


@dataclass(frozen=True)
class Workplace:
    device: torch.device
    is_tiny: bool
    folder: Path
    """For runs and data; somebody else removes it."""

    @property
    def is_cuda(self) -> bool:
        return self.device.type == "cuda"

    @property
    def alone(self) -> Ranks:
        """This process as the only one."""
        return Ranks(rank=0, world_size=1, local_rank=0, device=self.device)

    @property
    def num_gpus(self) -> int:
        return torch.cuda.device_count() if self.is_cuda else 0

    def config(self, **settings: object) -> TrainConfig:
        """Settings of a timed step; `train__precision="fp32"` is train.precision=fp32."""
        named = {name.replace("__", "."): value for name, value in settings.items()}
        return config_of(merge({}, list(((TINY if self.is_tiny else REAL) | named).items())))

    def task(self, config: TrainConfig) -> tuple[ContrastiveTask, PairBatch]:
        """A model under its engine on this device, and pairs for one step."""
        task = trial_task(config, self.alone)
        pairs = made_up_pairs(task.module, config.train.batch_size, config.data.context_length)
        return task, pairs.to(self.device)

    @cached_property
    def split(self) -> Path:
        """LMDB of made-up pairs, each caption the number that its picture's colours spell."""
        path = self.folder / "lmdb"
        rng = np.random.default_rng(0)
        with SplitWriter(path) as writer:
            for number in range(NUM_PAIRS):
                colours = rng.integers(0, 256, (2, 2, 3), dtype=np.uint8)
                file = io.BytesIO()
                Image.fromarray(colours.repeat(16, 0).repeat(16, 1)).save(file, "PNG")
                writer.add_image(number, file.getvalue())
                writer.add_pair(number, number, " ".join(str(number)))
        return path

    def words(self, name: str, *more: str) -> list[str]:
        """Words of the trainer for a run of tiny towers."""
        settings = (
            "run.device=" + str(self.device.type),
            f"run.logs_dir={self.folder}",
            f"run.name={name}",
            "model.image=tiny-vit",
            "model.text=tiny-bert",
            f"train.batch_size={BATCH}",
            "optim.lr=3e-3",
            "optim.weight_decay=0",
            "optim.warmup_steps=0",
            "optim.schedule=constant",
            "log.every_steps=1",
            "log.tensorboard=false",
            "log.summary=false",
            "data.num_workers=0",
            "checkpoint.every_epochs=null",
            *more,
        )
        return [f"--train-data={self.split}", *(f"--set={setting}" for setting in settings)]

    def train(self, name: str, *more: str) -> list[Mapping[str, Any]]:  # Any: numbers of a metrics row
        """A run of the trainer in this process; the rows of its steps."""
        main(self.words(name, *more))
        return self.rows(name)

    def train_on_ranks(
        self, processes: int, name: str, *more: str
    ) -> list[Mapping[str, Any]]:  # Any: as above
        """The same under torchrun."""
        self.torchrun(processes, ROOT / "cn_clip" / "training" / "main.py", *self.words(name, *more))
        return self.rows(name)

    def rows(self, name: str) -> list[Mapping[str, Any]]:  # Any: as above
        lines = (self.folder / name / "metrics.jsonl").read_text().splitlines()
        return [row for row in map(json.loads, lines) if row["kind"] == "train"]

    def torchrun(self, processes: int, script: Path, *words: str) -> None:
        """A script in several processes on this machine; RuntimeError with its last words where it fails."""
        start = [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--standalone",
            f"--nproc_per_node={processes}",
        ]
        done = subprocess.run(
            [*start, "--", str(script), *words],
            env=os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"},
            capture_output=True,
            text=True,
            timeout=540,
        )
        if done.returncode != 0:
            lines = [line for line in done.stderr.splitlines() if "rror" in line]
            raise RuntimeError(f"{script.name} in {processes} processes failed: {' / '.join(lines[:3])}")

    def finish(self) -> None:
        """Until the device has done all it was given."""
        if self.is_cuda:
            torch.cuda.synchronize(self.device)

    def step_seconds(self, config: TrainConfig, *, steps: int = 5) -> tuple[float, float]:
        """Median of some optimizer steps after two that are not counted, and the last gradient norm."""
        task, pairs = self.task(config)
        seconds = []
        for step in range(1, steps + 3):
            self.finish()
            started = time.perf_counter()
            norm = one_step(task, pairs, step)
            self.finish()
            seconds.append(time.perf_counter() - started)
        return sorted(seconds[2:])[steps // 2], norm


def one_step(task: ContrastiveTask, pairs: PairBatch, step: int) -> float:
    """One optimizer step; the norm of its gradient."""
    task.engine.zero_grad()
    task.accumulate_gradients([pairs], step)
    norm = task.engine.step(None)
    task.after_step()
    return norm
