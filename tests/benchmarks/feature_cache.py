"""Seconds of an epoch under a frozen image tower, with `data.feature_cache` and without.

    python tests/benchmarks/feature_cache.py [--pictures 256] [--epochs 3]

Trains the text tower by the training command itself on an LMDB of JPEG pictures of 500 x 375 that is made here, first without
the cache, which is what the reference does in each epoch, then with it. Seconds are those between the last steps of epochs
in `metrics.jsonl`; the first epoch begins before the cache is made.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from argparse import Namespace
from pathlib import Path

from sides import ROOT

sys.path.insert(0, str(ROOT))

CAPTION = "一只白色的小狗在草地上追着红色的球跑，远处有几个人站着"
"""Cut to 3 to 23 characters: with [CLS] and [SEP], 5 to 25 tokens."""


def main() -> None:
    flags = parse()
    with tempfile.TemporaryDirectory(dir=flags.folder) as name:
        folder = Path(name)
        mean_kb = write_store(folder / "lmdb", flags.pictures)
        print(
            f"{flags.image} frozen, {flags.text} trained, {flags.precision}: {flags.pictures} pictures of {mean_kb:.0f} kB, "
            f"batch {flags.batch_size}, {flags.threads} threads",
            flush=True,
        )
        without = epochs(folder, "without", flags)
        say("without the cache", without)
        cached = epochs(folder, "with", flags, "data.feature_cache=auto")
        say("with the cache", cached)
        print(
            f"ratio: first epoch {without[0] / cached[0]:.2f}, each later one "
            f"{statistics.median(without[1:]) / statistics.median(cached[1:]):.2f}"
        )


def parse() -> Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--pictures", type=int, default=256)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--precision", default="amp_bf16")
    parser.add_argument("--image", default="ViT-B-16")
    parser.add_argument("--text", default="RoBERTa-wwm-ext-base-chinese")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--folder", type=Path, help="where the data are made; the system's own by default")
    flags = parser.parse_args()
    if flags.epochs < 2:
        parser.error("--epochs must be 2 or more: the cache is for those after the first")
    return flags


def write_store(folder: Path, num: int) -> float:
    """A split of that many pictures with a caption each; their mean size in kB."""
    from pictures import encode, photo

    from cn_clip.clip.tokenizer import caption_ids, tokenizer_fingerprint
    from cn_clip.data.captions import preprocess_text
    from cn_clip.data.store import SplitWriter

    total = 0
    with SplitWriter(folder, tokenizer=tokenizer_fingerprint()) as writer:
        for number in range(num):
            raw = encode(photo(500, 375, number, 2.0), quality=75)
            caption = CAPTION[number % 5 : number % 5 + 3 + number % 21]
            writer.add_image(number, raw, "made here", size=(500, 375))
            writer.add_pair(number, number, caption, caption_ids(preprocess_text(caption)))
            total += len(raw)
    return total / num / 1000


def epochs(folder: Path, name: str, flags: Namespace, *settings: str) -> list[float]:
    """Seconds of each epoch of a run of its own."""
    settings = (
        f"run.name={name}", f"run.logs_dir={folder}", "data.train.type=lmdb_pairs", f"data.train.path={folder / 'lmdb'}", "data.num_workers=1",
        f"model.image={flags.image}", f"model.text={flags.text}", "model.freeze_image=true",
        f"train.batch_size={flags.batch_size}", f"train.max_epochs={flags.epochs}", f"train.precision={flags.precision}",
        "optim.warmup_steps=1", "checkpoint.enabled=false", "log.every_steps=1", "log.diagnostics=false",
        "log.tensorboard=false", "log.summary=false", *settings,
    )  # fmt: skip
    done = subprocess.run(
        [sys.executable, "cn_clip/training/main.py", *(f"--set={setting}" for setting in settings)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": str(flags.threads)},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        sys.exit(done.stderr)
    rows = [json.loads(line) for line in (folder / name / "metrics.jsonl").read_text().splitlines()]
    ends: dict[int, float] = {}
    for row in rows:
        if row["kind"] == "train":
            ends[row["epoch"]] = row["elapsed_seconds"]
    return [end - ends.get(epoch - 1, 0.0) for epoch, end in ends.items()]


def say(what: str, seconds: list[float]) -> None:
    print(f"  {what:18} seconds of each epoch: " + "  ".join(f"{each:7.2f}" for each in seconds), flush=True)


if __name__ == "__main__":
    main()
