"""Write one HTML page of a run: recall both ways, zero-shot result, curves, stage times, and pictures found."""

from __future__ import annotations

import os
import sys

if __name__ == "__main__":  # run by path: this checkout first on sys.path, and not the door's own folder
    sys.path[0] = os.path.abspath(os.path.join(os.path.dirname(__file__), "..", ".."))

import argparse
from collections.abc import Sequence
from pathlib import Path

from cn_clip.errors import run_door
from cn_clip.eval.whole_file import check_writable, open_whole


def main(words: Sequence[str] | None = None) -> None:
    """Write the page and print its numbers."""
    flags = _parser().parse_args(words)
    check_writable(flags.output)

    from cn_clip.eval.report.collect import Sources, collect
    from cn_clip.eval.report.page import render
    from cn_clip.eval.report.summary import summarize

    report = collect(
        Sources(
            texts=flags.texts,
            text_features=flags.text_feats,
            image_features=flags.image_feats,
            images=flags.images,
            run_folder=flags.train_log,
            recall_images=flags.recall_images,
            recall_texts=flags.recall_texts,
            zeroshot=flags.zeroshot,
            stages=flags.stages,
            title=flags.title,
            credit=flags.credit,
            num_queries=flags.num_queries,
            num_found=flags.num_found,
            seed=flags.seed,
        )
    )
    with open_whole(flags.output) as stream:
        stream.write(render(report))
    print(summarize(report))
    print(f"The report lies in {os.path.abspath(flags.output)}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("--texts", type=Path, required=True, metavar="JSONL", help="captions with their image_ids")
    add("--text-feats", type=Path, required=True, metavar="JSONL", help="their features")
    add("--image-feats", type=Path, required=True, metavar="JSONL", help="features of the pictures")
    add("--images", type=Path, required=True, metavar="LMDB", help="the split's folder, or its imgs folder")
    add("--output", type=Path, required=True, metavar="HTML", help="page to write")
    add("--train-log", type=Path, metavar="FOLDER", help="run folder, for its curves (metrics.jsonl)")
    add("--recall-images", type=Path, metavar="JSON", help="score of evaluation.py (default: computed here)")
    add(
        "--recall-texts", type=Path, metavar="JSON", help="score of evaluation_tr.py (default: computed here)"
    )
    add("--zeroshot", type=Path, metavar="TXT", help="what zeroshot_evaluation.py printed")
    add(
        "--stages",
        type=Path,
        metavar="PATH",
        help="JSON of stage seconds, or folder of files ending in `done SECONDS`",
    )
    add("--title", default="图文检索评测报告 Retrieval report", help="heading of the page")
    add("--credit", default="", help="whose pictures these are, for the foot of the page")
    add("--num-queries", type=int, default=24, metavar="N", help="captions shown (default: %(default)s)")
    add(
        "--num-found", type=int, default=6, metavar="N", help="pictures shown for each (default: %(default)s)"
    )
    add("--seed", type=int, default=0, help="which captions are drawn (default: %(default)s)")
    return parser


if __name__ == "__main__":
    run_door(main)
