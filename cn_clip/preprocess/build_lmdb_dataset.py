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
    from cn_clip.preprocess.splits.build import BuildOptions, SplitReport


def main(words: Sequence[str] | None = None) -> None:
    flags = _parse(words)
    from cn_clip.preprocess.splits.build import build_split, require_splits_there
    from cn_clip.preprocess.splits.split_files import find_splits

    options = _options(flags)
    lmdb_dir = Path(flags.lmdb_dir) if flags.lmdb_dir else Path(flags.data_dir) / "lmdb"
    splits = find_splits(Path(flags.data_dir), flags.splits, may_be_empty=flags.append)
    require_splits_there(splits, lmdb_dir, options)
    print(f"Building {', '.join(split.name for split in splits)} into {lmdb_dir}", flush=True)
    for split in splits:
        started = time.monotonic()
        report = build_split(split, lmdb_dir, options)
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
    parser.add_argument("--append", action="store_true", help="add the rows to the split that is there")
    parser.add_argument(
        "--shard_size", metavar="SIZE", help="cut the pictures into folders of at most this, for example 10GB"
    )
    parser.add_argument("--no_tokens", action="store_true", help="do not keep the token ids of the captions")
    parser.add_argument(
        "--decode", action="store_true", help="decode every picture in full, not only its header"
    )
    parser.add_argument(
        "--workers", type=int, metavar="N", help="threads that decode pictures (default: one per core)"
    )
    parser.add_argument(
        "--bad_rows",
        choices=("stop", "skip"),
        default="stop",
        help="stop at the first bad row, or leave bad rows out and list them in {split}.bad_rows.jsonl (default: %(default)s)",
    )
    parser.add_argument(
        "--max_bad_share",
        type=float,
        default=0.01,
        metavar="SHARE",
        help="with --bad_rows skip: more bad rows than this share are an error (default: %(default)s)",
    )
    return parser.parse_args([_underscored(word) for word in (sys.argv[1:] if words is None else words)])


def _underscored(word: str) -> str:
    """`--data-dir` as `--data_dir`: the first flags came with underscores, those of other commands with hyphens."""
    name, equals, value = word.partition("=")
    return f"--{name[2:].replace('-', '_')}{equals}{value}" if name.startswith("--") else word


def _options(flags: argparse.Namespace) -> BuildOptions:
    from cn_clip.preprocess.splits.build import BuildOptions
    from cn_clip.preprocess.splits.byte_size import read_byte_size

    return BuildOptions(
        format=flags.format,
        shard_bytes=None if flags.shard_size is None else read_byte_size(flags.shard_size, "--shard_size"),
        append=flags.append,
        tokens=not flags.no_tokens,
        decode=flags.decode,
        num_workers=flags.workers,
        bad_rows=flags.bad_rows,
        max_bad_share=flags.max_bad_share,
    )


def _describe(name: str, report: SplitReport, elapsed_seconds: float) -> str:
    notes = [
        f"{count} {what}"
        for count, what in (
            (report.num_repeats, "repeated rows of the same picture kept once"),
            (report.num_known_pairs, "pairs that were there already kept once"),
            (report.num_other_texts, "captions have the text id of an older one with another text"),
            (report.num_unpaired, "captions without image ids make no pair"),
            (report.num_blank_lines, "blank lines passed over"),
            (report.num_bad_rows, "bad rows left out"),
            (report.num_losers, "captions lost a picture"),
        )
        if count
    ]
    if report.bad_rows_path is not None:
        notes.append(f"listed in {report.bad_rows_path}")
    if report.num_all_images > report.num_images or report.num_all_pairs > report.num_pairs:
        notes.append(f"{report.num_all_images} pictures and {report.num_all_pairs} pairs in all")
    if report.num_shards > 1:
        notes.append(f"the pictures lie in {report.num_shards} folders")
    counts = f"{report.num_images} pictures, {report.num_captions} captions, {report.num_pairs} pairs"
    return f"{name}: {'; '.join([counts, *notes])} ({elapsed_seconds:.1f} s)"


if __name__ == "__main__":
    run_door(main)
