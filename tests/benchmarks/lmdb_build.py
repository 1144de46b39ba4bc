"""Building the LMDB of one split: MB of TSV per second, size on disk and peak memory, ours and the reference's.

    python tests/benchmarks/lmdb_build.py --reference DIR    # DIR: pip install --no-deps --target DIR cn-clip==1.6.0 six

Both are run as commands, start-up included, turn by turn; the best of the repeats counts. Linux only. The pictures are 500 x 375
JPEG of smooth shapes with some grain, about 45 kB each, the same few again and again under new ids. Ours checks every row,
base64, picture header and id, and that each caption's picture is there, and keeps sizes, digests and the captions' tokens; with
--decode it also decodes every picture. The reference checks nothing.
"""

from __future__ import annotations

import argparse
import base64
import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import astuple, dataclass
from pathlib import Path

import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
WIDTH_PX, HEIGHT_PX = 500, 375
QUALITY = 91
DOOR = "cn_clip/preprocess/build_lmdb_dataset.py"
RUN_AND_MEASURE = """
import resource, runpy, sys
from pathlib import Path
sys.argv = sys.argv[1:]
sys.path[0] = ""
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
except SystemExit as end:
    if end.code: raise
used = resource.getrusage(resource.RUSAGE_SELF)
peak_kb = Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]
print("USED", used.ru_utime + used.ru_stime, peak_kb)
"""


@dataclass(frozen=True)
class Result:
    seconds: float
    cpu_seconds: float
    """Of all threads; on a busy machine, the steadier number."""
    disk_mb: float
    peak_mb: float


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--reference", default=os.environ.get("CN_CLIP_REFERENCE_DIR"), required=False)
    parser.add_argument("--megabytes", type=int, default=400, help="of TSV")
    parser.add_argument("--repeat", type=int, default=3)
    flags = parser.parse_args()
    if not flags.reference:
        parser.error("--reference DIR or CN_CLIP_REFERENCE_DIR must name the folder of the reference package")
    with tempfile.TemporaryDirectory() as folder:
        tsv_mb = write_data(Path(folder), flags.megabytes)
        runs = {
            "reference": (Path(flags.reference), ()),
            "ours": (ROOT, ()),
            "ours, --decode": (ROOT, ("--decode",)),
            "ours, --format reference": (ROOT, ("--format", "reference")),
        }
        results: dict[str, list[Result]] = {name: [] for name in runs}
        for _ in range(flags.repeat):
            for name, (package, words) in runs.items():
                results[name].append(build(Path(folder), package, words))
        report(results, tsv_mb)


def write_data(folder: Path, megabytes: int) -> float:
    """MB of the TSV, with one caption per picture beside it."""
    rows = [base64.b64encode(make_picture(seed)) for seed in range(20)]
    tsv_path = folder / "train_imgs.tsv"
    number = 0
    with tsv_path.open("wb") as tsv, (folder / "train_texts.jsonl").open("w", encoding="utf-8") as jsonl:
        while tsv.tell() < megabytes * 1e6:
            tsv.write(b"%d\t%s\n" % (number, rows[number % len(rows)]))
            caption = {"text_id": number, "text": f"第{number}张图片的说明", "image_ids": [number]}
            jsonl.write(json.dumps(caption, ensure_ascii=False) + "\n")
            number += 1
    print(
        f"{number} pictures, {tsv_path.stat().st_size / 1e6:.0f} MB of TSV, {len(rows[0]) / 1e3:.0f} kB a row, {len(os.sched_getaffinity(0))} cores, load {os.getloadavg()[0]:.1f}"
    )
    return tsv_path.stat().st_size / 1e6


def make_picture(seed: int) -> bytes:
    """Large smooth shapes, smaller ones on them, and the grain of a camera: compresses as a photograph does."""
    random = np.random.default_rng(seed)
    picture = random.normal(0, 7, (HEIGHT_PX, WIDTH_PX, 3))
    for cells, strength in ((5, 1.0), (20, 0.4), (80, 0.2)):
        shapes = random.integers(0, 256, (cells * 3 // 4, cells, 3), dtype=np.uint8)
        smooth = Image.fromarray(shapes).resize((WIDTH_PX, HEIGHT_PX), Image.Resampling.BICUBIC)
        picture += strength * np.asarray(smooth, np.float64)
    file = io.BytesIO()
    Image.fromarray((picture / 1.6).clip(0, 255).astype(np.uint8)).save(file, "JPEG", quality=QUALITY)
    return file.getvalue()


def build(folder: Path, package: Path, words: tuple[str, ...]) -> Result:
    lmdb_dir = folder / "lmdb"
    shutil.rmtree(lmdb_dir, ignore_errors=True)
    flags = ["--data_dir", str(folder), "--splits", "train", "--lmdb_dir", str(lmdb_dir), *words]
    command = [sys.executable, "-c", RUN_AND_MEASURE, str(package / DOOR), *flags]
    started = time.perf_counter()
    done = subprocess.run(
        command, env={**os.environ, "PYTHONPATH": str(package)}, cwd=folder, capture_output=True, text=True
    )
    seconds = time.perf_counter() - started
    if done.returncode != 0:
        sys.exit(f"{package / DOOR} failed:\n{done.stderr[-2000:]}")
    files = [path for path in lmdb_dir.rglob("*") if path.is_file()]
    disk_bytes = sum(path.stat().st_blocks * 512 for path in files)
    cpu_seconds, peak_kb = map(float, done.stdout.rpartition("USED")[2].split())
    return Result(seconds, cpu_seconds, disk_bytes / 1e6, peak_kb / 1e3)


def report(results: dict[str, list[Result]], tsv_mb: float) -> None:
    best = {name: Result(*map(min, zip(*map(astuple, runs), strict=True))) for name, runs in results.items()}
    reference = best["reference"]
    for name, run in best.items():
        print(
            f"{name:26} {tsv_mb / run.seconds:6.0f} MB/s ({reference.seconds / run.seconds:.2f}x)  "
            f"{tsv_mb / run.cpu_seconds:6.0f} MB per CPU second ({reference.cpu_seconds / run.cpu_seconds:.2f}x)  "
            f"{run.disk_mb:6.0f} MB on disk ({run.disk_mb / reference.disk_mb:.2f}x)  peak {run.peak_mb:.0f} MB"
        )


if __name__ == "__main__":
    main()
