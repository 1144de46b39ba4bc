"""Flags of the two top-k commands, which differ only in who asks."""

from __future__ import annotations

import argparse


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
