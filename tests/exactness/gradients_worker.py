"""One rank of optimizer steps over a fixed global batch, for many cases: JSON of the cases, output file."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from typing import Any

import torch

from cn_clip.clip.model import build_model
from cn_clip.clip.presets import image_preset
from cn_clip.config.schema import Parallel
from cn_clip.data.batches import PairBatch, trim_padding
from cn_clip.errors import run_door
from cn_clip.losses.pair import contrastive
from cn_clip.parallel.precision import Precision
from cn_clip.parallel.ranks import Ranks, start_ranks
from cn_clip.parallel.wrap import freeze, wrap
from cn_clip.training.contrastive_task import ContrastiveTask, Encoding

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
        image_ids_B=ids // 2,
        text_ids_B=ids,
        caption_keys_B=ids % 5,
        pair_ids_B=ids,
        positions_B=ids,
    )


def block(whole: PairBatch, number: int, size: int) -> PairBatch:
    part = whole.each(lambda rows: rows[number * size : (number + 1) * size])
    return replace(part, tokens_BL=trim_padding(part.tokens_BL, 0))


def run_case(case: dict[str, Any], ranks: Ranks) -> dict[str, Any]:
    """Gradients, loss and BatchNorm statistics after the second step of one case, on every rank."""
    torch.manual_seed(0)
    model = build_model(case["image"], "tiny-bert")
    for dropout in (module for module in model.modules() if isinstance(module, torch.nn.Dropout)):
        dropout.p = case["dropout"]
    frozen = {"image": [model.visual], "text": [model.bert], "none": []}[case["frozen"]]
    for tower in frozen:
        freeze(tower)
    options = contrastive.Options(
        targets=case["targets"], gather=case["gather"], gradient=case["gradient"], tile=5
    )
    engine = wrap(model, Parallel(), Precision("fp32", ranks.device), ranks)
    engine.set_optimizer(torch.optim.SGD(model.parameters()))
    encoding = Encoding(seed=3, mask_ratio=lambda step: float(case["mask_ratio"]))
    task = ContrastiveTask(engine, contrastive.build(options), options, encoding, frozen=frozen)
    task.train_mode()
    size = NUM_PAIRS // (case["accumulate"] * ranks.world_size)
    whole = global_batch(image_preset(case["image"]).image_px)
    numbers = [a * ranks.world_size + ranks.rank for a in range(case["accumulate"])]
    for step in (1, 2):  # twice: a reducer left in a wrong state shows at the second step
        engine.zero_grad()
        report = task.accumulate_gradients([block(whole, number, size) for number in numbers], step)
    return {
        "gradients": {name: p.grad for name, p in model.named_parameters() if p.grad is not None},
        "report": {
            name: getattr(report, name)
            for name in ("loss", "image_to_text_accuracy", "text_to_image_accuracy", "logit_scale")
        },
        "statistics": {name: value for name, value in model.named_buffers() if "running" in name},
    }


def main(cases: str, output: str) -> None:
    torch.set_num_threads(1)
    with start_ranks("cpu") as ranks:
        results = [run_case(case, ranks) for case in json.loads(cases)]
        if ranks.is_main:
            torch.save(results, output)


if __name__ == "__main__":
    run_door(lambda: main(*sys.argv[1:]))
