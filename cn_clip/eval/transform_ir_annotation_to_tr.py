"""Turn text-to-image annotations (X.jsonl) into image-to-text ones (X.tr.jsonl)."""

from __future__ import annotations

import os
import sys

if __name__ == "__main__":  # run by path: this checkout first on sys.path, and not the door's own folder
    sys.path[0] = os.path.abspath(os.path.join(os.path.dirname(__file__), "..", ".."))

import argparse
from collections.abc import Sequence

from cn_clip.errors import run_door
from cn_clip.eval.retrieval.files import IMAGE_TO_TEXT, turn_answers, write_answers


def main(words: Sequence[str] | None = None) -> None:
    """Write the turned annotations beside the input."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--input", required=True, metavar="JSONL", help="annotations: text_id and image_ids")
    flags = parser.parse_args(words)
    write_answers(flags.input.removesuffix(".jsonl") + ".tr.jsonl", IMAGE_TO_TEXT, turn_answers(flags.input))
    print("Done!")


if __name__ == "__main__":
    run_door(main)
