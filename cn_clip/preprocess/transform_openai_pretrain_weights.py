"""Turn OpenAI's published CLIP (a TorchScript archive) into weights that `--clip-weight-path` and `torch.load` read."""

from __future__ import annotations

import os
import sys

if __name__ == "__main__":  # run by path: this checkout first on sys.path, and not the door's own folder
    sys.path[0] = os.path.abspath(os.path.join(os.path.dirname(__file__), "..", ".."))

import argparse
from collections.abc import Sequence
from pathlib import Path

from cn_clip.errors import WeightsError, run_door


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--raw-ckpt-path", required=True, help="OpenAI's file, for example ViT-B-16.pt")
    parser.add_argument(
        "--new-ckpt-path",
        default=None,
        help="file to write; by default `.state_dict` is put before the extension",
    )
    flags = parser.parse_args(words)
    raw = Path(flags.raw_ckpt_path)
    new = Path(flags.new_ckpt_path) if flags.new_ckpt_path else raw.with_suffix(f".state_dict{raw.suffix}")

    from cn_clip.clip.weights.files import is_jit_archive, read_jit_weights, write_weights

    if not raw.is_file():
        raise WeightsError(f"there is no weights file {raw}: give OpenAI's file to --raw-ckpt-path")
    if not is_jit_archive(raw):
        raise WeightsError(f"{raw} is no TorchScript archive: weights by name need no transforming")
    write_weights(read_jit_weights(raw), new)
    print(f"Wrote the weights of {raw} to {new}")


if __name__ == "__main__":
    run_door(main)
