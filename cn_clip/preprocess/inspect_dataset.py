"""See what is in a data set, and what to mind in training on it.

cn-clip inspect DATAPATH/datasets/MUGE/lmdb/train --html train.html
"""

from __future__ import annotations

import os
import sys

if __name__ == "__main__":  # run by path: this checkout first on sys.path, and not the door's own folder
    sys.path[0] = os.path.abspath(os.path.join(os.path.dirname(__file__), "..", ".."))

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from cn_clip.errors import ConfigError, DataError, run_door
from cn_clip.files import write_atomically
from cn_clip.preprocess.splits.in_order import num_cores


def main(words: Sequence[str] | None = None) -> None:
    """Inspect, print the summary, write what was asked for."""
    flags = _parser().parse_args(words)
    for output in (flags.json, flags.html):
        if output is not None:
            _require_writable(output)

    from cn_clip.preprocess.inspection.collect import Options, inspect_data
    from cn_clip.preprocess.inspection.summary import summarize

    report, pictures = inspect_data(
        flags.data,
        Options(
            split=flags.split,
            against=flags.against,
            batches=flags.batch,
            context_lengths=flags.context_length,
            near_distance=flags.near_distance,
            sample=flags.sample,
            num_examples=flags.pictures,
            workers=flags.workers,
            seed=flags.seed,
        ),
    )
    print(summarize(report))
    if flags.json is not None:
        write_atomically(flags.json, json.dumps(asdict(report), indent=1).encode())
    if flags.html is not None:
        from cn_clip.preprocess.inspection.page import render

        # a path may hold bytes that are no UTF-8
        write_atomically(flags.html, render(report, pictures.read).encode("utf-8", "replace"))
    for output in (flags.json, flags.html):
        if output is not None:
            print(f"Written: {output.resolve()}")
    if flags.strict and report.has_problems:
        raise DataError("--strict: there are problems; see the lines marked PROBLEM above")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="See what is in a data set, and what to mind in training on it."
    )
    add = parser.add_argument
    add("data", type=Path, metavar="DATA", help="LMDB split, folder of splits, or folder of TSV and JSONL")
    add("--split", metavar="NAME", help="one split of a folder (default: all, one after the other)")
    add("--against", type=Path, metavar="SPLIT", help="split to look for the same pictures and captions in")
    add("--json", type=Path, metavar="FILE", help="write all figures")
    add("--html", type=Path, metavar="FILE", help="write a page with plots and pictures")
    add("--strict", action="store_true", help="exit code 2 when there are problems that stop a training")
    add("--sample", type=int, metavar="N", help="look at N random pairs only")
    add(
        "--workers",
        type=int,
        default=num_cores(),
        metavar="N",
        help="processes (default: the cores, %(default)s here)",
    )
    add(
        "--batch",
        type=_numbers,
        default="128,1024,8192,32768",
        metavar="N,...",
        help="global batch sizes to count false negatives for (default: %(default)s)",
    )
    add(
        "--context-length",
        type=_numbers,
        default="32,52,64,77,128,256,512",
        metavar="N,...",
        help="lengths to count cut captions for (default: %(default)s)",
    )
    add(
        "--near-distance",
        type=int,
        default=4,
        metavar="BITS",
        help="bits of 64 in which near pictures may differ, 0 to 10 (default: %(default)s)",
    )
    add(
        "--pictures",
        type=int,
        default=24,
        metavar="N",
        help="random pictures on the page (default: %(default)s)",
    )
    add("--seed", type=int, default=0, help="of what is drawn at random (default: %(default)s)")
    return parser


def _numbers(text: str) -> tuple[int, ...]:
    try:
        return tuple(sorted({int(word) for word in text.split(",")}))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not a comma list of whole numbers") from error


def _require_writable(path: Path) -> None:
    if path.is_dir():
        raise ConfigError(f"{path} is a folder: give the name of a file to write")
    if not path.parent.is_dir():
        raise ConfigError(f"the folder of {path} does not exist: make it first")


if __name__ == "__main__":
    run_door(main)
