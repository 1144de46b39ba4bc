"""Write TSV and JSONL from a CSV of picture files and captions and a folder of pictures.

python data_tools/dataset_transform.py --csv captions.csv --image-dir images/ --output-dir DATAPATH/datasets/MINE

Pictures get whole numbers as ids, by the order of their file names; {split}_image_ids.json says which id is which file.
"""

from __future__ import annotations

import os
import sys

if __name__ == "__main__":  # run by path: this checkout first, not an older installed package
    sys.path[0] = os.path.abspath(os.path.join(os.path.dirname(__file__), ".."))

import argparse
from collections.abc import Sequence
from pathlib import Path

from cn_clip.errors import run_door


def main(words: Sequence[str] | None = None) -> None:
    flags = parse_flags(words)
    from cn_clip.preprocess.importing.sorted_table import IDS_FILE, Options, transform_table

    options = Options(
        csv=flags.csv,
        image_dir=flags.image_dir,
        output_dir=flags.output_dir,
        image_column=flags.image_column,
        caption_column=flags.caption_column,
        splits=tuple(name.strip() for name in flags.splits.split(",")),
        valid_share=flags.valid_share,
        seed=flags.seed,
    )
    summary = transform_table(options)
    for split in options.splits:
        print(f"{split}: {summary.num_pictures[split]} pictures, {summary.num_texts[split]} captions")
    if summary.num_repeats:
        print(f"{summary.num_repeats} repeated rows of the same picture and caption kept once")
    print(f"Written to {options.output_dir}; *{IDS_FILE} says which id is which file")
    print(
        "Next: python cn_clip/preprocess/build_lmdb_dataset.py "
        f"--data_dir {options.output_dir} --splits {','.join(options.splits)}"
    )


def parse_flags(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--csv", type=Path, required=True, help="UTF-8 table; its first line names the columns")
    add("--image-dir", type=Path, required=True, help="folder that the picture files of the table lie below")
    add("--output-dir", type=Path, required=True, help="folder for the files, made when missing")
    add("--image-column", default="image_id", help="column of the picture file (default: %(default)s)")
    add("--caption-column", default="caption", help="column of the caption (default: %(default)s)")
    add(
        "--splits",
        default="train,valid",
        help="one name for all pictures, or two of which the second is held out (default: %(default)s)",
    )
    add(
        "--valid-share",
        type=float,
        default=0.2,
        help="share of the pictures, with all their captions, that the second split gets (default: %(default)s)",
    )
    add("--seed", type=int, default=42, help="which pictures they are (default: %(default)s)")
    from cn_clip.preprocess.importing.flags import with_hyphens

    return parser.parse_args(with_hyphens(sys.argv[1:] if words is None else words))


if __name__ == "__main__":
    run_door(main)
