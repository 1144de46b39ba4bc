"""One rank of a step: saves the parameters' gradients, the loss and BatchNorm's statistics of a fixed global batch.

Words: output file, micro-batches per rank, image tower, frozen tower or `none`, JSON of changed text dropout and
`gather`. Started by torchrun or alone.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

from cn_clip.clip.model import build_model
from cn_clip.clip.presets import image_preset
from cn_clip.config.schema import Parallel
from cn_clip.data.batches import PairBatch, trim_padding
from cn_clip.errors import run_door
from cn_clip.losses.pair import contrastive
from cn_clip.parallel.precision import Precision
from cn_clip.parallel.ranks import start_ranks
from cn_clip.parallel.wrap import ParallelModel, freeze
from cn_clip.training.contrastive_task import ContrastiveTask

NUM_PAIRS, NUM_TOKENS = 16, 12


def global_batch(image_px: int) -> PairBatch:
    generator = torch.Generator().manual_seed(7)
    tokens = torch.randint(1, 1000, (NUM_PAIRS, NUM_TOKENS), generator=generator)
    lengths = torch.randint(4, NUM_TOKENS, (NUM_PAIRS,), generator=generator)
    tokens[torch.arange(NUM_TOKENS) >= lengths[:, None]] = 0
    ids = torch.arange(NUM_PAIRS)
    return PairBatch(
        torch.randn(NUM_PAIRS, 3, image_px, image_px, generator=generator),
        tokens,
        ids // 2,
        ids,
        ids % 5,
        ids,
    )


def block(whole: PairBatch, number: int, size: int) -> PairBatch:
    part = PairBatch(*(getattr(whole, name)[number * size : (number + 1) * size] for name in vars(whole)))
    return PairBatch(**{**vars(part), "tokens_BL": trim_padding(part.tokens_BL, 0)})


def main(output: str, accumulate: int, image: str, frozen: str, options: dict) -> None:
    torch.set_num_threads(1)
    with start_ranks("cpu") as ranks:
        torch.manual_seed(0)
        model = build_model(image, "tiny-bert")
        for dropout in (m for m in model.modules() if isinstance(m, torch.nn.Dropout)):
            dropout.p = options["dropout"]
        towers = {"image": [model.visual], "text": [model.bert], "none": []}[frozen]
        for tower in towers:
            freeze(tower)
        loss_options = contrastive.Options(
            targets=options["targets"], gather=options["gather"], gradient=options["gradient"], tile=5
        )
        task = ContrastiveTask(
            ParallelModel(model, Parallel(), ranks), contrastive.build(loss_options), loss_options,
            Precision("fp32", ranks.device), ranks=ranks, mask_ratio=options["mask_ratio"], frozen=towers, seed=3,
        )  # fmt: skip
        task.train_mode()
        size = NUM_PAIRS // (accumulate * ranks.world_size)
        whole = global_batch(image_preset(image).image_px)
        batches = [block(whole, a * ranks.world_size + ranks.rank, size) for a in range(accumulate)]
        for step in (1, 2):  # twice: a reducer left in a wrong state shows at the second step
            model.zero_grad(set_to_none=True)
            report = task.accumulate_gradients(batches, step)
        if ranks.is_main:
            gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
            statistics = {name: value for name, value in model.named_buffers() if "running" in name}
            torch.save(
                {
                    "gradients": gradients,
                    "loss": report.loss,
                    "report": vars(report),
                    "statistics": statistics,
                },
                output,
            )


if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[2])
    words = sys.argv[1:]
    run_door(lambda: main(words[0], int(words[1]), words[2], words[3], json.loads(words[4])))
