"""Build the LMDB of each split from `{split}_imgs.tsv` and `{split}_texts.jsonl`.

python cn_clip/preprocess/build_lmdb_dataset.py --data_dir DATAPATH/datasets/MUGE --splits train,valid,test
"""

from __future__ import annotations

import os
import sys

if __name__ == "__main__":  # run by path: this checkout first on sys.path, and not the door's own folder
    sys.path[0] = os.path.abspath(os.path.join(os.path.dirname(__file__), "..", ".."))

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from cn_clip.errors import run_door

if TYPE_CHECKING:
    from cn_clip.preprocess.splits.build import SplitReport


def main(words: Sequence[str] | None = None) -> None:
    flags = _parse(words)
    from cn_clip.preprocess.splits.build import build_split, find_splits

    lmdb_dir = Path(flags.lmdb_dir) if flags.lmdb_dir else Path(flags.data_dir) / "lmdb"
    splits = find_splits(Path(flags.data_dir), flags.splits)
    print(f"Building {', '.join(split.name for split in splits)} into {lmdb_dir}", flush=True)
    for split in splits:
        started = time.monotonic()
        report = build_split(split, lmdb_dir, flags.format)
        print(_describe(split.name, report, time.monotonic() - started), flush=True)
    print("done!")


def _parse(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Build the LMDB of each split from its TSV and JSONL.")
    parser.add_argument(
        "--data_dir", required=True, help="folder of {split}_imgs.tsv and {split}_texts.jsonl"
    )
    parser.add_argument("--splits", required=True, help="comma list, for example train,valid,test")
    parser.add_argument(
        "--lmdb_dir", help="where the LMDB folders go, one per split (default: DATA_DIR/lmdb)"
    )
    parser.add_argument(
        "--format",
        choices=("v2", "reference"),
        default="v2",
        help="v2 keeps the pictures as they are; reference is what cn-clip 1.x reads (default: %(default)s)",
    )
    return parser.parse_args(words)


def _describe(name: str, report: SplitReport, elapsed_seconds: float) -> str:
    notes = [
        f"{count} {what}"
        for count, what in (
            (report.num_repeats, "repeated rows of the same picture kept once"),
            (report.num_unpaired, "captions without image ids make no pair"),
            (report.num_blank_lines, "blank lines passed over"),
        )
        if count
    ]
    counts = f"{report.num_images} pictures, {report.num_captions} captions, {report.num_pairs} pairs"
    return f"{name}: {'; '.join([counts, *notes])} ({elapsed_seconds:.1f} s)"


if __name__ == "__main__":
    run_door(main)
