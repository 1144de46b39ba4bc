"""Time of finding the best pictures for texts: ours and the reference's program, search alone and files in and out.

    CN_CLIP_REFERENCE_DIR=DIR python tests/benchmarks/topk.py [--queries 2000] [--gallery 30000]

DIR holds `pip install --no-deps --target DIR cn-clip==1.6.0 six`. The reference runs under a patched `.cuda` on the
same CPU threads, over `--reference-queries` of the queries; its time per query does not depend on their number.
`--cpu` compares CPU seconds instead of those of the clock, which other programs on the machine distort: then give
`--threads 1`, since waiting threads count too.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from cn_clip.eval.features.files import read_features, write_features  # noqa: E402  (the path above comes first)
from cn_clip.eval.retrieval.search import top_k  # noqa: E402

RUN = """
import runpy, sys, time, torch
torch.Tensor.cuda = lambda self, *args, **kwargs: self
torch.set_num_threads(int(sys.argv.pop(1)))
clock = time.process_time if sys.argv.pop(1) == "cpu" else time.perf_counter
began = clock()
try:
    runpy.run_module("cn_clip.eval.make_topk_predictions", run_name="__main__")
except SystemExit as end:  # ours ends the process itself
    assert end.code == 0
print("seconds", clock() - began)
"""


def main() -> None:
    """Make random features, run both, print seconds and ratios."""
    flags = parse()
    torch.set_num_threads(flags.threads)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        images, texts = unit(flags.gallery, flags.width, 0), unit(flags.queries, flags.width, 1)
        write_features(folder / "i.jsonl", "image_id", [(list(range(flags.gallery)), images)])
        write_features(folder / "t.jsonl", "text_id", [(list(range(flags.queries)), texts)])
        few = flags.reference_queries
        write_features(folder / "few.jsonl", "text_id", [(list(range(few)), texts[:few])])
        report(flags, folder)


def report(flags: argparse.Namespace, folder: Path) -> None:
    """Run and print."""
    clock = time.process_time if flags.cpu else time.perf_counter
    began = clock()
    _, images = read_features(folder / "i.jsonl", "image_id")
    read_images = clock() - began
    _, texts = read_features(folder / "t.jsonl", "text_id")
    began = clock()
    top_k(texts, images, 10)
    search = (clock() - began) / flags.queries

    whole = run(ROOT, flags, folder, "t.jsonl")
    few = flags.reference_queries
    (folder / "one.jsonl").write_text((folder / "few.jsonl").read_text().splitlines()[0] + "\n")
    their_many = run(flags.reference_dir, flags, folder, "few.jsonl")
    their_one = run(flags.reference_dir, flags, folder, "one.jsonl")
    their_search = (their_many - their_one) / (few - 1)
    their_whole = their_one + their_search * flags.queries
    print(f"{flags.queries} texts, {flags.gallery} pictures, {flags.width} numbers, {flags.threads} threads")
    print(
        f"search, ms a query      ours {search * 1e3:9.3f}  reference {their_search * 1e3:9.3f}  "
        f"ratio {their_search / search:6.1f}"
    )
    print(
        f"files in and out, s     ours {whole:9.2f}  reference {their_whole:9.2f}  "
        f"ratio {their_whole / whole:6.1f}"
    )
    print(
        f"(reading the pictures' features: ours {read_images:.2f} s; the reference's whole is its time for one "
        f"query plus {flags.queries} searches, timed on {few})"
    )


def run(package_dir: Path, flags: argparse.Namespace, folder: Path, texts: str) -> float:
    """Seconds of the top-k program found in `package_dir`, imports of torch not counted."""
    words = [
        f"--image-feats={folder / 'i.jsonl'}",
        f"--text-feats={folder / texts}",
        f"--output={folder / 'o'}",
    ]
    env = {**os.environ, "PYTHONPATH": str(package_dir), "OMP_NUM_THREADS": str(flags.threads)}
    command = [sys.executable, "-c", RUN, str(flags.threads), "cpu" if flags.cpu else "wall", *words]
    done = subprocess.run(command, env=env, cwd=folder, capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr)
    return float(done.stdout.split()[-1])


def unit(rows: int, width: int, seed: int) -> torch.Tensor:
    """Random features of unit length."""
    return torch.nn.functional.normalize(
        torch.randn(rows, width, generator=torch.Generator().manual_seed(seed)), dim=-1
    )


def parse() -> argparse.Namespace:
    """Sizes, threads and where the reference is."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--queries", type=int, default=2000)
    parser.add_argument("--reference-queries", type=int, default=50)
    parser.add_argument("--gallery", type=int, default=30000)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--cpu", action="store_true")
    parser.add_argument("--reference-dir", type=Path, default=os.environ.get("CN_CLIP_REFERENCE_DIR", ""))
    return parser.parse_args()


if __name__ == "__main__":
    main()
