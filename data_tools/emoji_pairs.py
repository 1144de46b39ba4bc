"""Write the quickstart's training data: emoji drawings with Chinese captions, from installed packages, no download.

python data_tools/emoji_pairs.py --output-dir data/emoji
"""

import os
import sys

if (
    __name__ == "__main__"
):  # run by path: this checkout goes first on sys.path, not an older installed package
    sys.path[0] = os.path.abspath(os.path.join(os.path.dirname(__file__), ".."))

import argparse
from pathlib import Path

from cn_clip.errors import run_door
from data_tools.emoji_quickstart.build import SPLITS, Options, build_emoji_pairs


def main() -> None:
    options = parse_options()
    summary = build_emoji_pairs(options)
    for split in SPLITS:
        print(f"{split}: {summary.num_pictures[split]} pictures, {summary.num_texts[split]} texts")
    print(f"zeroshot: {summary.num_zeroshot_pictures} pictures of the test split")
    print(f"Written to {options.output_dir}")


def parse_options() -> Options:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--output-dir", type=Path, required=True, help="folder for the files, made when missing"
    )
    parser.add_argument(
        "--image-px", type=int, default=Options.image_px, help="side of the pictures in pixels"
    )
    parser.add_argument("--seed", type=int, default=Options.seed, help="which families are held out")
    parser.add_argument("--limit", type=int, help="take only so many emoji, for a quick look")
    return Options(**vars(parser.parse_args()))


if __name__ == "__main__":
    run_door(main)
