"""One rank that opens training sets. Words: folder to write to, folder of shards, LMDB split.

Writes `RANK.json`: pairs of the opened sets, what was logged of counting, the first samples of a lane; or the error.
"""

from __future__ import annotations

import json
import logging
import sys
from itertools import islice
from pathlib import Path

from cn_clip.config.schema import Data, Part, WeightedPart
from cn_clip.data.pairs import PairSource, lmdb_pairs, mixture, webdataset
from cn_clip.errors import DataError
from cn_clip.parallel.ranks import start_ranks
from cn_clip.training.training_data import open_sources


class Lines(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


def main(output: Path, shards: str, split: str) -> None:
    counting = logging.getLogger("cn_clip.data.tars.counts")
    counting.setLevel(logging.INFO)
    counting.addHandler(lines := Lines())
    tars, pairs = webdataset.Options(urls=(shards,)), lmdb_pairs.Options(path=split)
    both = mixture.Options(sources=(WeightedPart("lmdb_pairs", pairs), WeightedPart("webdataset", tars)))
    found: dict[str, object] = {"lines": lines.lines}
    with start_ranks("cpu") as ranks:
        try:
            for train in (Part("webdataset", tars), Part("mixture", both), Part("lmdb_pairs", pairs)):
                opened = open_sources(Data(train=train, valid=Part("lmdb_pairs", pairs)), ranks).train
                if isinstance(opened, PairSource):
                    found[train.type] = len(opened)
                else:
                    lane = islice(opened.lane(0, 1, first=0, seed=1), 4)
                    found[train.type] = [opened.num_pairs, [str(pair) for pair in lane]]
        except DataError as error:
            found["error"] = str(error)
        (output / f"{ranks.rank}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], sys.argv[3])
