"""Bring pictures and captions of another layout in: TSV + JSONL with stable ids, or an LMDB. The same as `cn-clip import`.

python data_tools/import_dataset.py muge --data-dir Multimodal_Retrieval/ --output-dir DATAPATH/datasets/MUGE
"""

from __future__ import annotations

import os
import sys

if __name__ == "__main__":  # run by path: this checkout first, not an older installed package
    sys.path[0] = os.path.abspath(os.path.join(os.path.dirname(__file__), ".."))

from collections.abc import Sequence

from cn_clip.errors import run_door


def main(words: Sequence[str] | None = None) -> None:
    from cn_clip.preprocess.importing.command import describe, parse, run

    kind, options, run_options = parse(words, __doc__ or "")
    print("\n".join(describe(run(kind, options, run_options), run_options)))


if __name__ == "__main__":
    run_door(main)
