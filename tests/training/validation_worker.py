"""One rank of validations. Words: file to write to (JSON, the main rank's), LMDB split, JSON list of overrides for each case.

Writes for each case the numbers of the validation, and for 10 sets of random features with many equal scores the ranks of
first right answers, the features dealt to the ranks at random.
"""

from __future__ import annotations

import json
import random
import sys
from functools import partial
from pathlib import Path

import torch

from cn_clip.clip.model import build_model
from cn_clip.config.load import merge
from cn_clip.config.schema import Parallel
from cn_clip.metrics.first_right import Exchange, Features, Tiling, ranks_of_first_right
from cn_clip.metrics.right_pairs import RightPairs
from cn_clip.parallel.gather import gather_rows, sum_over_ranks
from cn_clip.parallel.precision import Precision
from cn_clip.parallel.ranks import Ranks, start_ranks
from cn_clip.parallel.wrap import wrap
from cn_clip.training.build import build_config
from cn_clip.training.training_data import TrainingData, open_sources, order_of
from cn_clip.training.validation import Validation


def numbers_of(split: str, overrides: list[tuple[str, object]], ranks: Ranks) -> dict[str, float]:
    part = {"type": "lmdb_pairs", "path": split}
    settings = {
        "data": {"train": part, "valid": part, "valid_num_workers": 0, "transform": "exact"},
        "model": {"image": "tiny-vit", "text": "tiny-bert"},
    }
    config = build_config(merge(settings, overrides))
    torch.manual_seed(0)
    model = build_model("tiny-vit", "tiny-bert")
    engine = wrap(model, Parallel(), Precision("fp32", ranks.device), ranks)
    sources = open_sources(config.data, ranks)
    order = order_of(config, sources.train, ranks)
    data = TrainingData(config, sources, order, ranks, pad_id=model.bert.pad_id)
    return Validation(engine, data.valid, ranks, config.validate).run().numbers()


def ranks_of_random_features(seed: int, ranks: Ranks) -> list[list[int]]:
    rng, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    pairs = [(rng.randrange(30), rng.randrange(100, 125)) for _ in range(60)]
    images, texts = torch.tensor(pairs).T
    right = RightPairs.of(images, texts, texts % 20, torch.ones(60, dtype=torch.bool))
    dealt = []
    for num in (len(right.pictures), len(right.captions)):
        features_NE = torch.randint(-1, 2, (num, 3), generator=generator).float()
        owners = torch.tensor([rng.randrange(4) for _ in range(num)]) % ranks.world_size
        places = (owners == ranks.rank).nonzero()[:, 0]
        places = places[torch.randperm(len(places), generator=torch.Generator().manual_seed(seed))]
        dealt.append(Features(places, features_NE[places]))
    exchange = Exchange(partial(gather_rows, ranks=ranks), partial(sum_over_ranks, ranks=ranks), ranks.device)
    found = ranks_of_first_right(*dealt, right, exchange, Tiling(pictures=5, captions=6))
    return [ranks_N.tolist() for ranks_N in found]


def main(output: Path, split: str, cases: list[list[tuple[str, object]]]) -> None:
    with start_ranks("cpu") as ranks:
        numbers = [numbers_of(split, case, ranks) for case in cases]
        ranked = [ranks_of_random_features(seed, ranks) for seed in range(10)]
        if ranks.is_main:
            output.write_text(json.dumps({"numbers": numbers, "ranked": ranked}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], json.loads(sys.argv[3]))
