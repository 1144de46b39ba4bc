"""One checkpoint file from a folder of shards (`checkpoint.sharded`), as the run would have written without them.

`cn-clip consolidate RUN/checkpoints/epoch_latest.sharded` writes `epoch_latest.pt` beside it, on one machine without ranks.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

if __name__ == "__main__":  # run by path: this checkout first on sys.path, and not the door's own folder
    sys.path[0] = os.path.abspath(os.path.join(os.path.dirname(__file__), "..", ".."))

from cn_clip.errors import ConfigError, run_door


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "folder", type=Path, help="the folder of shards, or a link to one such as epoch_latest.sharded"
    )
    parser.add_argument(
        "file", type=Path, nargs="?", help="where to write; default: the folder's name with .pt"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace a file that is there already")
    given = parser.parse_args(words)
    file = given.file or given.folder.with_suffix(".pt")
    if not file.absolute().parent.is_dir():
        raise ConfigError(f"the folder of {file} does not exist: make it first, or give another file")
    if file.is_dir():
        raise ConfigError(f"{file} is a folder: give the name of the file to write")
    if file.exists() and not given.overwrite:
        raise ConfigError(f"{file} is there already: give another file, or --overwrite to replace it")

    from cn_clip.training.checkpoints.consolidation import write_whole

    content = write_whole(given.folder, file)
    print(f"{file}: epoch {content['epoch']}, step {content['step']}, {len(content['state_dict'])} tensors")


if __name__ == "__main__":
    run_door(main)
