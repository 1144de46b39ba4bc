"""One rank of two optimizer steps over a fixed global batch, for many cases: JSON of the cases, output file."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from cn_clip.clip.model import CLIP, build_model
from cn_clip.clip.presets import image_preset
from cn_clip.config.schema import Parallel
from cn_clip.data.batches import PairBatch, trim_padding
from cn_clip.errors import run_door
from cn_clip.losses.pair import contrastive
from cn_clip.parallel.engines import Engine
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


def block(whole: PairBatch, number: int, size: int, *, trim: bool = True) -> PairBatch:
    part = whole.each(lambda rows: rows[number * size : (number + 1) * size])
    return replace(part, tokens_BL=trim_padding(part.tokens_BL, 0)) if trim else part


def own_blocks(case: dict[str, Any], ranks: Ranks) -> list[PairBatch]:
    """Micro-batches of this rank, by the rule of the order: number a·W + r of the global batch."""
    size = NUM_PAIRS // (case["accumulate"] * ranks.world_size)
    whole = global_batch(image_preset(case["image"]).image_px)
    numbers = [a * ranks.world_size + ranks.rank for a in range(case["accumulate"])]
    return [block(whole, number, size, trim=case["trim"]) for number in numbers]


def small_model(case: dict[str, Any]) -> tuple[CLIP, list[torch.nn.Module]]:
    """The model of a case, and what of it is frozen."""
    torch.manual_seed(0)
    model = build_model(case["image"], "tiny-bert")
    for module in model.modules():  # the towers' own dropouts have a rate `p`, whatever their class
        if isinstance(getattr(module, "p", None), float):
            module.p = case["dropout"]
    frozen: list[torch.nn.Module] = {"image": [model.visual], "text": [model.bert], "none": []}[case["frozen"]]
    for tower in frozen:
        freeze(tower)
    if case["frozen"] == "text":  # the projection of the text features is the text tower's
        model.text_projection.requires_grad_(False)
    return model, frozen


def small_optimizer(model: CLIP) -> torch.optim.Optimizer:
    """AdamW whose step is a smooth function of the gradient: with a tiny eps it would show the sign of rounding errors.

    Groups as in training: FSDP's cut up and whole parameters must not share one.
    """
    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    groups = [
        {"params": [p for _, p in part], "param_names": [name for name, _ in part], "weight_decay": decay}
        for part, decay in (
            ([(name, p) for name, p in trained if p.dim() < 2], 0.0),
            ([(name, p) for name, p in trained if p.dim() >= 2], 0.2),
        )
    ]
    return torch.optim.AdamW([group for group in groups if group["params"]], lr=0.01, eps=1e-2)


def build_case(case: dict[str, Any], ranks: Ranks) -> tuple[ContrastiveTask, Engine[CLIP]]:
    model, frozen = small_model(case)
    settings = Parallel(**{"engine": case["engine"], **case.get("parallel", {})})
    precision = Precision(case["precision"], ranks.device)
    blocks = [*model.visual.blocks(), *model.bert.blocks()]
    engine = wrap(model, settings, precision, ranks, blocks=blocks, recompute=case["recompute"])
    engine.set_optimizer(small_optimizer(model))
    options = contrastive.Options(
        targets=case["targets"], gather=case["gather"], gradient=case["gradient"], tile=case["tile"]
    )
    encoding = Encoding(seed=3, mask_ratio=lambda step: float(case["mask_ratio"]))
    task = ContrastiveTask(engine, contrastive.build(options), options, encoding, frozen=frozen)
    task.train_mode()
    return task, engine


def moments(engine: Engine[CLIP]) -> dict[str, Tensor]:
    """Second moments by the parameter's name, and the steps that were counted; empty on other ranks."""
    state = engine.optimizer_state()
    if not state:
        return {}
    found = {engine.parameter_names[n]: entry["exp_avg_sq"] for n, entry in state["state"].items()}
    return found | {"step": torch.tensor(float(state["state"][0]["step"]))}


def run_case(case: dict[str, Any], ranks: Ranks) -> dict[str, Any]:
    """What two steps of one case came to; gradients are those of the second."""
    task, engine = build_case(case, ranks)
    batches = own_blocks(case, ranks)
    norms, gradients = [], {}
    for step in (1, 2):  # twice: a reducer left in a wrong state shows at the second step
        engine.zero_grad()
        report = task.accumulate_gradients(batches, step)
        gradients = {name: gradient.clone() for name, gradient in engine.gradients().items()}
        norms.append(engine.step(case["max_norm"]))
    return {
        "gradients": gradients,
        "norms": norms,
        "report": {
            name: getattr(report, name)
            for name in ("loss", "image_to_text_accuracy", "text_to_image_accuracy", "logit_scale")
        },
        "weights": engine.model_state(),
        "moments": moments(engine),
    }


def main(cases: str, output: str) -> None:
    torch.set_num_threads(1)
    with start_ranks("cpu") as ranks:
        results = []
        for case in json.loads(cases):
            if ranks.is_main:
                print(case, flush=True)
            results.append(run_case(case, ranks))
        if ranks.is_main:
            torch.save(results, output)


if __name__ == "__main__":
    run_door(lambda: main(*sys.argv[1:]))
