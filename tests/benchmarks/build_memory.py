"""Memory of building and reading a split of few and of many rows: it should not grow with them.

    python tests/benchmarks/build_memory.py [--rows 10000 1000000]

Tiny pictures, a caption each, so that anything kept per row shows; the captions share 1,000 texts, since the tokenizer's table
of words, which stops at 200,000 of them, would show otherwise. What counts is anonymous memory (RssAnon), the highest of
the command and its children together, looked at every few milliseconds: pages of mapped files are the system's to take back.
Linux only.
"""

from __future__ import annotations

import argparse
import base64
import io
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
BUILD = [sys.executable, str(ROOT / "cn_clip/preprocess/build_lmdb_dataset.py")]
# what training does with a split: open it, then read pairs, their pictures and their tokens
READ = """
import sys
from cn_clip.data.store import open_split
split = open_split(sys.argv[1])
for index in range(len(split.pairs)):
    pair = split.pairs.read(index)
    split.images.read(pair.image_id)
    split.tokens and split.tokens.read(index)
"""


@dataclass(frozen=True)
class Used:
    seconds: float
    peak_mb: float


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 1_000_000])
    flags = parser.parse_args()
    for num_rows in flags.rows:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            write_data(folder, num_rows)
            words = ["--data_dir", name, "--splits", "train"]
            for title, command in (
                ("build", [*BUILD, *words]),
                ("build --decode", [*BUILD, *words, "--decode"]),
                ("read", [sys.executable, "-c", READ, str(folder / "lmdb" / "train")]),
            ):
                used = run(command)
                print(
                    f"{num_rows:9,} rows  {title:15} peak {used.peak_mb:6.1f} MB  {used.seconds:6.1f} s",
                    flush=True,
                )


def write_data(folder: Path, num_rows: int) -> None:
    file = io.BytesIO()
    Image.new("RGB", (8, 8), (200, 30, 30)).save(file, "JPEG", quality=10)
    encoded = base64.b64encode(file.getvalue())
    tsv_path, jsonl_path = folder / "train_imgs.tsv", folder / "train_texts.jsonl"
    with tsv_path.open("wb") as tsv, jsonl_path.open("w", encoding="utf-8") as jsonl:
        for number in range(num_rows):
            tsv.write(b"%d\t%s\n" % (number, encoded))
            caption = {"text_id": number, "text": f"第{number % 1000}张图片", "image_ids": [number]}
            jsonl.write(json.dumps(caption, ensure_ascii=False) + "\n")


def run(command: list[str]) -> Used:
    """Seconds and the highest anonymous memory of a command that must end well."""
    started = time.monotonic()
    peak_kb = 0
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL) as process:
        while process.poll() is None:
            peak_kb = max(peak_kb, sum(map(anonymous_kb, family(process.pid))))
            time.sleep(0.01)
    if process.returncode != 0:
        sys.exit(f"{command} failed")
    return Used(time.monotonic() - started, peak_kb / 1e3)


def family(pid: int) -> list[int]:
    """A process and all that came from it."""
    members = [pid]
    for member in members:
        for children in Path(f"/proc/{member}/task").glob("*/children"):
            try:
                members += map(int, children.read_text().split())
            except OSError:  # it ended meanwhile
                continue
    return members


def anonymous_kb(pid: int) -> int:
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:  # it ended meanwhile
        return 0
    return int(status.split("RssAnon:")[1].split()[0]) if "RssAnon:" in status else 0


if __name__ == "__main__":
    main()
