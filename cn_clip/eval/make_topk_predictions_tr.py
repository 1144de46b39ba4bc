"""Find the best texts for each image by inner product of their features."""

from __future__ import annotations

import os
import sys

if __name__ == "__main__":  # run by path: this checkout first on sys.path, and not the door's own folder
    sys.path[0] = os.path.abspath(os.path.join(os.path.dirname(__file__), "..", ".."))

from collections.abc import Sequence

from cn_clip.errors import run_door
from cn_clip.eval.params import format_params
from cn_clip.eval.retrieval.flags import search_parser


def main(words: Sequence[str] | None = None) -> None:
    """Search and write the prediction file."""
    flags = search_parser(description=__doc__, gallery="texts").parse_args(words)
    print(format_params(flags))

    from cn_clip.eval.device import pick_device
    from cn_clip.eval.retrieval.predict import Search, predict_to_file

    search = Search(
        image_features=flags.image_feats,
        text_features=flags.text_feats,
        asks="image_id",
        top_k=flags.top_k,
        block=flags.eval_batch_size,
        device=pick_device(flags.device),
    )
    num_found = predict_to_file(search, flags.output)
    if num_found < flags.top_k:
        print(f"There are only {num_found} texts: each image lists all of them.")
    print(f"Top-{flags.top_k} predictions are saved in {flags.output}")
    print("Done!")


if __name__ == "__main__":
    run_door(main)
