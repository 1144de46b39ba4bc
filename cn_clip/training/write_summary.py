"""Write the summary of a run again: summary.md and its plots, from the files of the run's folder.

cn-clip summary logs/muge_finetune
"""

from __future__ import annotations

import os
import sys

if __name__ == "__main__":  # run by path: this checkout first on sys.path, and not the door's own folder
    sys.path[0] = os.path.abspath(os.path.join(os.path.dirname(__file__), "..", ".."))

import argparse
from collections.abc import Sequence
from pathlib import Path

from cn_clip.errors import run_door


def main(words: Sequence[str] | None = None) -> None:
    """Write it, and say where."""
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n\n")[0])
    parser.add_argument("run", type=Path, metavar="RUN_DIR", help="folder of a run, with metrics.jsonl in it")
    flags = parser.parse_args(words)

    from cn_clip.training.summary import write_summary

    print(f"Written: {write_summary(flags.run).resolve()}")


if __name__ == "__main__":
    run_door(main)
