"""Pictures transformed per CPU second, plain and augmented: the reference's pipeline and ours, exact and fast.

    python tests/benchmarks/transform.py --reference DIR    # DIR: pip install --no-deps --target DIR cn-clip==1.6.0 six

The pictures are 500 x 375 JPEG of quality 90; `--grain` sets their fine detail and so their size (4 makes 35 kB, 12 makes
80 kB): the more there is to decode, which both do with libjpeg-turbo, the less the rest counts. The reference works on
base64 text, as its stores hold it; ours on the bytes.
"""

from __future__ import annotations

import argparse
import base64
import io
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path[0] = str(Path(__file__).parents[2])

import numpy as np  # noqa: E402
import torch  # noqa: E402
from PIL import Image  # noqa: E402

IMAGE_PX = 224

REFERENCE = """
import base64, io, json, sys, time
import torch
torch.set_num_threads(1)
from PIL import Image
from cn_clip.training.data import LMDBDataset
dataset = object.__new__(LMDBDataset)
dataset.split = "train"
pictures = sys.stdin.read().split()
for dataset.use_augment in (False, True):
    transform = dataset._build_transform(224)
    best = float("inf")
    for _ in range(int(sys.argv[1])):
        started = time.process_time()
        for text in pictures:
            transform(Image.open(io.BytesIO(base64.urlsafe_b64decode(text))))
        best = min(best, time.process_time() - started)
    print(len(pictures) / best)
"""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--reference", default=os.environ.get("CN_CLIP_REFERENCE_DIR"))
    parser.add_argument("--pictures", type=int, default=100)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--grain", type=float, default=8.0, help="deviation of the noise, in levels of 255")
    flags = parser.parse_args()
    torch.set_num_threads(1)
    pictures = [make_photo(seed, flags.grain) for seed in range(flags.pictures)]
    print(f"mean size {sum(map(len, pictures)) / len(pictures) / 1000:.0f} kB")
    for name, reference_rate in zip(("none", "autoaugment"), reference_rates(flags, pictures), strict=True):
        print(f"augment {name}")
        print(f"  reference     {reference_rate:8,.0f} pictures/s")
        for mode in ("exact", "fast"):
            rate = best_rate(make_transform(mode, name), pictures, flags.repeat)
            print(f"  cn_clip {mode:5} {rate:8,.0f} pictures/s   {rate / reference_rate:5.2f} x")


def make_transform(mode: str, augment: str) -> Callable[[bytes], object]:
    from importlib import import_module

    from cn_clip.clip.transform import train_transform
    from cn_clip.config.schema import Part

    options = import_module(f"cn_clip.clip.augment.{augment}").Options()
    return train_transform(IMAGE_PX, mode, Part(augment, options))


def make_photo(seed: int, grain: float) -> bytes:
    """A 500 x 375 JPEG: smooth colours and fine grain."""
    rng = np.random.default_rng(seed)
    coarse = np.clip(128 + 60 * rng.normal(size=(16, 21, 3)), 0, 255).astype(np.uint8)
    smooth = np.asarray(
        Image.fromarray(coarse).resize((500, 375), Image.Resampling.BICUBIC), dtype=np.float64
    )
    grainy = np.clip(smooth + grain * rng.normal(size=smooth.shape), 0, 255).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(grainy).save(file, "JPEG", quality=90)
    return file.getvalue()


def best_rate(transform: Callable[[bytes], object], pictures: list[bytes], repeat: int) -> float:
    seconds = []
    for _ in range(repeat):
        started = time.process_time()
        for raw in pictures:
            transform(raw)
        seconds.append(time.process_time() - started)
    return len(pictures) / min(seconds)


def reference_rates(flags: argparse.Namespace, pictures: list[bytes]) -> list[float]:
    """The reference's rates, plain and augmented; not a number without its folder."""
    if not flags.reference:
        return [float("nan"), float("nan")]
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", REFERENCE, str(flags.repeat)],
        input="\n".join(base64.b64encode(raw).decode() for raw in pictures),
        env={**os.environ, "PYTHONPATH": flags.reference},
        cwd=flags.reference,  # -c puts the working directory first, and this checkout has the same package name
        capture_output=True,
        text=True,
        check=True,
    )
    return [float(line) for line in done.stdout.split()]


if __name__ == "__main__":
    main()
