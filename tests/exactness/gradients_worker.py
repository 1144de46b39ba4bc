"""One rank of two optimizer steps over a fixed global batch, for many cases: JSON of the cases, output file."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from cn_clip.clip.model import CLIP, build_model
from cn_clip.clip.presets import image_preset
from cn_clip.clip.weights import load_into, state_for_file, state_for_run
from cn_clip.config.schema import Model, Optim, Parallel
from cn_clip.data.batches import PairBatch, trim_padding
from cn_clip.errors import run_door
from cn_clip.losses.pair import contrastive
from cn_clip.parallel import sharded_files
from cn_clip.parallel.engines import Engine
from cn_clip.parallel.gather import gather_objects
from cn_clip.parallel.precision import LossScale, Precision
from cn_clip.parallel.ranks import Ranks, start_ranks
from cn_clip.parallel.rng import stable_seed
from cn_clip.parallel.wrap import wrap
from cn_clip.towers.pair_random import pair_keys
from cn_clip.training.contrastive_task import ContrastiveTask
from cn_clip.training.encoding import Encoding
from cn_clip.training.freezing import freeze_towers
from cn_clip.training.optimizer import build_optimizer

NUM_PAIRS, NUM_TOKENS, SEED = 16, 12, 3


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
    settings = Model(freeze_image=case["frozen"] == "image", freeze_text=case["frozen"] == "text")
    return model, freeze_towers(model, settings)


SMOOTH = Optim(lr=0.01, beta1=0.9, beta2=0.98, eps=1e-2)
"""AdamW whose step is a smooth function of the gradient: with a tiny eps it would show the sign of rounding errors."""


def build_case(case: dict[str, Any], ranks: Ranks) -> tuple[ContrastiveTask, Engine[CLIP]]:
    model, frozen = small_model(case)
    if case["resumed"]:
        load_into(model, saved_weights(Path(case["resumed"])), where=case["resumed"])
    settings = Parallel(**{"engine": case["engine"], **case.get("parallel", {})})
    precision = Precision(case["precision"], ranks.device)
    blocks = [*model.visual.blocks(), *model.bert.blocks()]
    engine = wrap(model, settings, precision, ranks, blocks=blocks, recompute=case["recompute"])
    engine.set_optimizer(build_optimizer(model, SMOOTH))
    options = contrastive.Options(
        targets=case["targets"], gather=case["gather"], gradient=case["gradient"], tile=case["tile"]
    )
    encoding = Encoding(seed=SEED, keyed=case["keyed"], mask_ratio=lambda step: float(case["mask_ratio"]))
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


def poison(engine: Engine[CLIP], batch: PairBatch) -> float:
    """A step in which the last rank alone has gradients that are no numbers; returns the norm."""
    engine.zero_grad()
    image_BE, text_BE, scale, *_ = engine(batch.images_BCHW, batch.tokens_BL)
    is_last = engine.ranks.rank == engine.ranks.world_size - 1
    engine.backward((image_BE.sum() + text_BE.sum() + scale) * (float("inf") if is_last else 1.0))
    return engine.step(None)


def resume(path: Path, task: ContrastiveTask, engine: Engine[CLIP]) -> None:
    """Go on from what `keep` or a folder of shards holds, as a run does, but for the weights, which came before."""
    if path.is_dir():
        state = sharded_files.read_optimizer(path, engine)
    else:
        state = torch.load(path, weights_only=True)["optimizer"]
    groups = engine.optimizer.param_groups
    engine.load_optimizer_state(state_for_run(state, groups, engine.module, engine.shapes()))


def saved_weights(path: Path) -> dict[str, Tensor]:
    if path.is_dir():
        return sharded_files.read_weights(path)
    weights: dict[str, Tensor] = torch.load(path, weights_only=True)["model"]
    return weights


def keep(path: Path, engine: Engine[CLIP]) -> sharded_files.Pending | None:
    """Write what another run may go on from: a file, and a folder of shards in the background where the engine has them."""
    weights, state = engine.model_state(), engine.optimizer_state()
    if engine.ranks.is_main:
        torch.save({"model": weights, "optimizer": state_for_file(state, engine.module)}, path)
    if not engine.saves_shards:
        return None
    return sharded_files.save(path.with_suffix(""), engine, {"step": 1}, asynchronous=True)


def dense_local_loss(case: dict[str, Any], engine: Engine[CLIP], step: int) -> float:
    """Mean of the losses that so many ranks have when each contrasts only its own pairs, by autograd in this process."""
    world_size, whole = case["dense"], global_batch(image_preset(case["image"]).image_px)
    keys_N = pair_keys(stable_seed(SEED, step), whole.positions_B)
    loss = torch.zeros(())
    for rank in range(world_size):
        rows_R = (
            whole.positions_B // (NUM_PAIRS // 4)
        ) % world_size == rank  # four micro-batches, dealt in turn
        image_RE, text_RE, scale, *_ = engine(
            whole.images_BCHW[rows_R],
            whole.tokens_BL[rows_R],
            mask_ratio=case["mask_ratio"],
            keys_B=keys_N[rows_R],
        )
        logits_RR, match_R = scale * image_RE @ text_RE.T, torch.arange(int(rows_R.sum()))
        loss = loss + (F.cross_entropy(logits_RR, match_R) + F.cross_entropy(logits_RR.T, match_R)) / 2
    loss = loss / world_size
    engine.backward(loss)
    return loss.item()


def run_case(case: dict[str, Any], ranks: Ranks) -> dict[str, Any]:
    """What two steps of one case came to: gradients of the last one, lengths of those of the first."""
    task, engine = build_case(case, ranks)
    if case["scaled"]:
        engine.precision.loss_scale = LossScale(enabled=True)
    batches = own_blocks(case, ranks)
    norms, losses, pending, report = [], [], None, None
    gradients: dict[str, Tensor] = {}
    lengths: dict[str, float] = {}
    poisoned = poison(engine, batches[0]) if case["poisoned"] else 0.0
    if case["resumed"]:
        resume(Path(case["resumed"]), task, engine)
    for step in (
        (2,) if case["resumed"] else (1, 2)
    ):  # twice: a reducer left in a wrong state shows at the second
        engine.zero_grad()
        if case["dense"]:
            losses.append(dense_local_loss(case, engine, step))
        else:
            report = task.accumulate_gradients(batches, step)
            losses.append(report.loss)
        gradients = {name: gradient.clone() for name, gradient in engine.gradients().items()}
        lengths = lengths or {name: float(gradient.norm()) for name, gradient in gradients.items()}
        norms.append(engine.step(case["max_norm"]))
        if case["kept"] and step == 1:
            pending = keep(Path(case["kept"]), engine)
    if pending is not None:
        pending.wait()  # only now: the second step moved what was being written
    return {
        "gradients": gradients,
        "lengths": lengths,
        "norms": gather_objects(norms, ranks),
        "poisoned": gather_objects(poisoned, ranks),
        "losses": losses,
        "report": {
            name: getattr(report, name)
            for name in ("loss", "image_to_text_accuracy", "text_to_image_accuracy", "logit_scale")
            if report is not None
        },
        "weights": engine.model_state(),
        "moments": moments(engine),
        "scale": engine.precision.loss_scale.value,
        "statistics": gather_objects(
            [value.tolist() for name, value in engine.module.named_buffers() if "running" in name], ranks
        ),
    }


def main(cases: str, output: str) -> None:
    torch.set_num_threads(1)
    with start_ranks("cpu") as ranks:
        results = []
        for case in json.loads(cases):
            if ranks.is_main:
                print(json.dumps(case), flush=True)  # the last one is the one that failed
            results.append(run_case(case, ranks))
        if ranks.is_main:
            torch.save(results, output)


if __name__ == "__main__":
    run_door(lambda: main(*sys.argv[1:]))
