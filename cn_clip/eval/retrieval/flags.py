"""Flags of the top-k and the scoring commands, each a pair that differs only in who asks."""

from __future__ import annotations

import argparse

from cn_clip.eval.retrieval.files import Direction
from cn_clip.eval.retrieval.scoring import DEFAULT_NUM_FOUND


def search_parser(description: str, gallery: str) -> argparse.ArgumentParser:
    """Parser of a top-k command; `gallery` names what is found ("images" or "texts")."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--image-feats", required=True, metavar="JSONL", help="features of the images")
    parser.add_argument("--text-feats", required=True, metavar="JSONL", help="features of the texts")
    parser.add_argument("--output", required=True, metavar="JSONL", help="predictions to write")
    parser.add_argument(
        "--top-k",
        type=int,
        default=10,
        metavar="K",
        help=f"{gallery} to find for each query, best first (default: %(default)s); fewer {gallery} than K are all listed",
    )
    parser.add_argument(
        "--eval-batch-size",
        type=int,
        default=32768,
        metavar="N",
        help=f"{gallery} scored at once (default: %(default)s); it changes memory and speed, never the result",
    )
    parser.add_argument(
        "--device", default="auto", help="auto (CUDA when there is one), cpu or cuda (default: auto)"
    )
    return parser


def score_parser(description: str, direction: Direction) -> argparse.ArgumentParser:
    """Parser of a scoring command: three files by position, as in the reference."""
    asks, found = direction.query.removesuffix("_id"), direction.found.removesuffix("_ids")
    rows = f"{direction.query} and {direction.found}"
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("annotations", help=f"JSONL of right answers: {rows}")
    parser.add_argument("predictions", help=f"JSONL of predictions: {rows}, best first")
    parser.add_argument("output", help="JSON to write the score to, in percent")
    parser.add_argument(
        "--top-k",
        type=int,
        default=DEFAULT_NUM_FOUND,
        metavar="K",
        help=f"predictions that each {asks} must have (default: %(default)s); give the number of {found}s when there "
        "are fewer than 10, or the --top-k of the search",
    )
    return parser
