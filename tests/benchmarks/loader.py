"""From LMDB to batch: pictures per second of the reference's loader and of ours, and how far fast pictures are off.

    python tests/benchmarks/loader.py --reference DIR    # DIR: pip install --no-deps --target DIR cn-clip==1.6.0 six

Each side reads its own store of the same JPEG pictures and captions: the reference its `LMDBDataset` under torch's
DataLoader, as its trainer builds them; ours what `cn_clip.training.training_data` builds. Both live in a process of
their own for the whole run and are asked in turn, so that what else the machine does falls on both. Printed are the
medians over the turns: pictures per second by the clock, the workers' CPU milliseconds per picture (the steadier number
on a busy machine), and both ratios. Linux only.

The pictures are synthetic: fine structure as photos have it, edges, text-like strokes, gradients and grain. What a JPEG takes
to decode grows with its bytes, and both sides decode with libjpeg-turbo, so each size comes twice, at quality 75 and 90.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

ROOT = Path(__file__).resolve().parents[2]
sys.path[0] = str(ROOT / "tests" / "benchmarks")
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402
from pictures import Kind, encode, photo  # noqa: E402

KINDS = (
    Kind("500x375", 500, 375, grain=2.0, quality=75, count=256),
    Kind("500x375-fine", 500, 375, grain=2.0, quality=90, count=256),
    Kind("2000x1500", 2000, 1500, grain=2.0, quality=75, count=24),
    Kind("2000x1500-fine", 2000, 1500, grain=2.0, quality=90, count=24),
)
IMAGE_PX = 224
CAPTION = "一只白色的小狗在草地上追着红色的球跑，远处有几个人站着看"

SERVE = """
import json, multiprocessing, os, sys, time
from itertools import islice
from pathlib import Path

import torch
torch.set_num_threads(1)

def cpu_seconds():
    ticks = 0
    for worker in multiprocessing.active_children():
        fields = Path(f"/proc/{worker.pid}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")

def serve(make_loader, size_of):
    for line in sys.stdin:
        asked = json.loads(line)
        batches = iter(make_loader(asked))
        # workers start, and what they made ahead of time is taken
        for _ in islice(batches, asked["skip"]): pass
        cpu, clock = cpu_seconds(), time.perf_counter()
        pictures = sum(size_of(batch) for batch in islice(batches, asked["batches"]))
        answer = {"seconds": time.perf_counter() - clock, "cpu_seconds": cpu_seconds() - cpu, "pictures": pictures}
        del batches
        print(json.dumps(answer), flush=True)
"""

REFERENCE = (
    SERVE
    + """
from torch.utils.data import DataLoader
from torch.utils.data.distributed import DistributedSampler
from cn_clip.training.data import LMDBDataset

def make_loader(asked):
    dataset = LMDBDataset(asked["lmdb"], "train", 52, asked["augment"], 224)
    dataset.dataset_len = asked["batch_size"] * (asked["skip"] + asked["batches"] + 8)
    sampler = DistributedSampler(dataset, num_replicas=1, rank=0, shuffle=True, seed=0)
    return DataLoader(
        dataset, batch_size=asked["batch_size"], sampler=sampler, num_workers=asked["workers"], pin_memory=False
    )

serve(make_loader, lambda batch: len(batch[0]))
"""
)

OURS = (
    SERVE
    + """
from cn_clip.clip.augment import autoaugment, none
from cn_clip.config.schema import Data, Part, Train, TrainConfig
from cn_clip.data.pairs import lmdb_pairs
from cn_clip.parallel.ranks import Ranks
from cn_clip.training.training_data import TrainingData, open_sources, order_of

AUGMENT = {True: Part("autoaugment", autoaugment.Options()), False: Part("none", none.Options())}

def make_loader(asked):
    data = Data(
        train=Part("lmdb_pairs", lmdb_pairs.Options(path=asked["lmdb"])),
        augment=AUGMENT[asked["augment"]],
        transform=asked["mode"],
        num_workers=asked["workers"],
    )
    config = TrainConfig(data=data, train=Train(batch_size=asked["batch_size"]))
    ranks = Ranks(rank=0, world_size=1, local_rank=0, device=torch.device("cpu"))
    sources = open_sources(data, ranks)
    loaders = TrainingData(config, sources, order_of(config, sources.train, ranks), ranks, pad_id=0)
    return loaders.train_loader(first_step=0, last_step=asked["skip"] + asked["batches"] + 8)

serve(make_loader, len)
"""
)


@dataclass(frozen=True)
class Rate:
    pictures_per_second: float
    cpu_ms: float
    """Of the workers, per picture."""


class Side:
    """A process that builds loaders and times them when asked."""

    def __init__(self, name: str, code: str, package: Path, lmdb: str, mode: str = "") -> None:
        self.name, self.lmdb, self.mode = name, lmdb, mode
        self._process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", code],
            env={**os.environ, "PYTHONPATH": str(package), "OMP_NUM_THREADS": "1"},
            # -c puts the working directory first, and both packages have the same name
            cwd=package,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def measure(self, folder: Path, augment: bool, workers: int, batches: int, batch_size: int) -> Rate:
        asked = {
            "lmdb": str(folder / self.lmdb),
            "mode": self.mode,
            "augment": augment,
            "workers": workers,
            "batches": batches,
            "batch_size": batch_size,
            # a run's first augmented pictures also pay for what all later ones share
            "skip": (8 if augment else 3) * workers,
        }
        _pipe(self._process.stdin).write(json.dumps(asked) + "\n")
        _pipe(self._process.stdin).flush()
        answer = json.loads(_pipe(self._process.stdout).readline())
        return Rate(answer["pictures"] / answer["seconds"], 1000 * answer["cpu_seconds"] / answer["pictures"])

    def close(self) -> None:
        _pipe(self._process.stdin).close()
        self._process.wait()


def _pipe(pipe: IO[str] | None) -> IO[str]:
    assert pipe is not None
    return pipe


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--reference", default=os.environ.get("CN_CLIP_REFERENCE_DIR"))
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument(
        "--seconds", type=float, default=1.5, help="of the reference's work in one turn, roughly"
    )
    parser.add_argument("--kinds", nargs="+", default=[kind.name for kind in KINDS])
    parser.add_argument("--quality", action="store_true", help="only how far fast pictures are off")
    parser.add_argument("--exact", action="store_true", help="time our exact mode too")
    flags = parser.parse_args()
    kinds = [kind for kind in KINDS if kind.name in flags.kinds]
    if flags.quality:
        for kind in kinds:
            report_quality(kind)
        return
    if not flags.reference:
        parser.error("--reference DIR or CN_CLIP_REFERENCE_DIR must name the folder of the reference package")
    with tempfile.TemporaryDirectory() as folder:
        for kind in kinds:
            mean_kb = write_stores(Path(folder) / kind.name, kind)
            print(f"{kind.name} JPEG, {mean_kb:.0f} kB each", flush=True)
            report_quality(kind)
            with sides(Path(flags.reference), flags.exact) as both:
                for augment in (False, True):
                    report(both, Path(folder) / kind.name, kind, augment, flags)


def write_stores(folder: Path, kind: Kind) -> float:
    """The same pictures and captions in the reference's format and in ours; the pictures' mean size in kB."""
    from cn_clip.clip.tokenizer import caption_ids, tokenizer_fingerprint
    from cn_clip.data.captions import preprocess_text
    from cn_clip.data.store import SplitWriter

    folder.mkdir()
    sizes = []
    with (
        SplitWriter(folder / "theirs", "reference") as theirs,
        SplitWriter(folder / "ours", tokenizer=tokenizer_fingerprint()) as ours,
    ):
        for number in range(kind.count):
            raw = make(kind, number)
            caption = f"{CAPTION[: 8 + number % (len(CAPTION) - 8)]}{number}"
            theirs.add_image(number, raw, "made here")
            theirs.add_pair(number, number, caption)
            ours.add_image(number, raw, "made here", size=(kind.width, kind.height))
            ours.add_pair(number, number, caption, caption_ids(preprocess_text(caption)))
            sizes.append(len(raw))
    return float(np.mean(sizes)) / 1000


def make(kind: Kind, seed: int) -> bytes:
    return encode(photo(kind.width, kind.height, seed, kind.grain), quality=kind.quality)


def report_quality(kind: Kind, count: int = 12) -> None:
    """How far fast pixels are from exact ones, over some pictures, the worst of each figure."""
    from PIL import Image

    from cn_clip.clip.decode import open_picture
    from cn_clip.clip.transform import fast_transform

    offs = []
    for raw in (make(kind, seed) for seed in range(count)):
        exact = np.asarray(open_picture(raw).resize((IMAGE_PX, IMAGE_PX), Image.Resampling.BICUBIC)).astype(
            int
        )
        offs.append(np.abs(fast_transform(IMAGE_PX)(raw).permute(1, 2, 0).numpy() - exact))
    print(
        f"  {kind.name}, fast against exact, in levels of 255: mean {max(off.mean() for off in offs):.3f}, within 2 "
        f"{min((off <= 2).mean() for off in offs):.5f}, within 4 {min((off <= 4).mean() for off in offs):.5f}, "
        f"most {max(off.max() for off in offs)}",
        flush=True,
    )


@contextmanager
def sides(reference: Path, exact: bool) -> Iterator[list[Side]]:
    started = [
        Side("reference", REFERENCE, reference, "theirs"),
        Side("ours, fast", OURS, ROOT, "ours", "fast"),
    ]
    if exact:
        started.append(Side("ours, exact", OURS, ROOT, "ours", "exact"))
    try:
        yield started
    finally:
        for side in started:
            side.close()


def report(sides: list[Side], folder: Path, kind: Kind, augment: bool, flags: argparse.Namespace) -> None:
    batch_size = 64 if kind.count > 64 else 8
    # the reference takes about 3 ms for a small picture, and 8 times as long for a large one
    pictures = flags.seconds / (0.003 * (1 if kind.width <= 500 else 8))
    one: dict[str, Rate] = {}
    for workers in (1, 2):
        batches = max(4, round(workers * pictures / batch_size))
        rates: dict[str, list[Rate]] = {side.name: [] for side in sides}
        for _ in range(flags.turns):
            for side in sides:
                rates[side.name].append(side.measure(folder, augment, workers, batches, batch_size))
        print(f"  {'autoaugment' if augment else 'no augmentation'}, {workers} worker{'s' * (workers > 1)}")
        for name, rate in middle(rates).items():
            first = one.setdefault(name, rate)
            reference = middle(rates)["reference"]
            print(
                f"    {name:12} {rate.pictures_per_second:7,.0f} pictures/s {rate.cpu_ms:7.2f} CPU ms   "
                f"{rate.pictures_per_second / reference.pictures_per_second:5.2f} x by the clock, "
                f"{reference.cpu_ms / rate.cpu_ms:5.2f} x by CPU"
                + (
                    f", {rate.pictures_per_second / first.pictures_per_second:.2f} x one worker"
                    * (workers > 1)
                ),
                flush=True,
            )


def middle(rates: dict[str, list[Rate]]) -> dict[str, Rate]:
    return {
        name: Rate(
            statistics.median(rate.pictures_per_second for rate in many),
            statistics.median(rate.cpu_ms for rate in many),
        )
        for name, many in rates.items()
    }


if __name__ == "__main__":
    main()
