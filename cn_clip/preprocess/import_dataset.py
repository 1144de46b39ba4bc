"""Bring pictures and captions of another layout in: TSV + JSONL with stable ids, or an LMDB.

cn-clip import folder --image-dir images/ --captions captions.csv --output-dir DATAPATH/datasets/MINE
"""

from __future__ import annotations

import os
import sys

if __name__ == "__main__":  # run by path: this checkout first on sys.path, and not the door's own folder
    sys.path[0] = os.path.abspath(os.path.join(os.path.dirname(__file__), "..", ".."))

from collections.abc import Sequence

from cn_clip.errors import run_door


def main(words: Sequence[str] | None = None) -> None:
    from cn_clip.preprocess.importing.command import describe, parse, run

    kind, options, run_options = parse(words, __doc__ or "")
    report = run(kind, options, run_options)
    print("\n".join(describe(report, run_options)))


if __name__ == "__main__":
    run_door(main)
