"""Tables of docs/scaling.md: what ViT-L/14 and ViT-H/14 take on 8, 64 and 1,024 GPUs, computed on any machine without one.

    python tests/benchmarks/scaling_plan.py

Bytes and FLOPs come from the functions that `cn-clip doctor` predicts with (fake tensors walked through the run's own code);
bytes sent are by formula, as a ring sends them; times divide both by the rates below, which are assumptions.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from cn_clip.config.schema import TrainConfig
from cn_clip.training.build import build_config
from cn_clip.training.diagnosis.finding import in_bytes
from cn_clip.training.diagnosis.loss_cost import loss_cost
from cn_clip.training.diagnosis.memory import Prediction, predict
from cn_clip.training.diagnosis.step_cost import StepCost, step_cost

MODELS = {
    "ViT-L/14": {"image": "ViT-L-14", "text": "RoBERTa-wwm-ext-base-chinese"},
    "ViT-H/14": {"image": "ViT-H-14", "text": "RoBERTa-wwm-ext-large-chinese"},
}
ENGINES: Mapping[str, dict[str, Any]] = {  # Any: plain settings of `parallel`
    "DDP": {"engine": "ddp"},
    "ZeRO-1": {"engine": "zero1"},
    "ZeRO-2": {"engine": "zero2"},
    "ZeRO-3": {"engine": "zero3"},
    "FSDP2": {"engine": "fsdp"},
    "FSDP2, reshard=false": {"engine": "fsdp", "reshard": False},
    "HSDP (8)": {"engine": "fsdp", "shard_ranks": 8},
}
GLOBAL_BATCH = {8: 8192, 64: 32768, 1024: 65536}
"""GPUs -> pairs of a step."""
GPUS_OF_A_NODE = 8
MEMORY = 80e9
"""Bytes of an H100's memory."""
PEAK_FLOPS, ACHIEVED = 989e12, 0.45
"""bf16, dense, H100 SXM (data sheet); the share that training steps of such towers reach (0.4 to 0.55 is usual)."""
LOSS_FLOPS = 40e12
"""fp32 outside the tensor cores: 67e12 at most (data sheet)."""
NVLINK, INFINIBAND = 300e9, 40e9
"""Bytes a second that a GPU sends to its node (450e9 at most), and to other nodes (400 Gbit/s each: 50e9 at most)."""


@dataclass(frozen=True)
class Plan:
    """One model on so many GPUs."""

    model: str
    gpus: int
    micro_batch: int
    accumulate: int
    recompute: bool

    @property
    def pairs(self) -> int:
        return self.micro_batch * self.accumulate


def config_of(model: str, engine: str = "DDP", **train: Any) -> TrainConfig:  # Any: plain settings
    recompute = train.pop("recompute", False)
    return build_config(
        {
            "data": {"train": {"type": "lmdb_pairs", "path": "none"}},
            "model": {**MODELS[model], "recompute": recompute},
            "train": {"precision": "amp_bf16", **train},
            "parallel": ENGINES[engine],
        }
    )


@cache
def cost_of(
    model: str, pairs: int, recompute: bool, randomness: str = "pair", gathers: bool = False
) -> StepCost:
    """`gathers`: under FSDP2, whose weights arrive in bf16."""
    engine = "FSDP2" if gathers else "DDP"
    config = config_of(model, engine, batch_size=pairs, recompute=recompute, randomness=randomness)
    return step_cost(config, "cuda", world_size=GPUS_OF_A_NODE)


def prediction_of(plan: Plan, engine: str) -> Prediction:
    config = config_of(
        plan.model,
        engine,
        batch_size=plan.micro_batch,
        accumulate=plan.accumulate,
        recompute=plan.recompute,
    )
    gathers = config.parallel.engine == "fsdp"
    cost = cost_of(plan.model, plan.micro_batch, plan.recompute, gathers=gathers)
    return predict(config, plan.gpus, "cuda", cost=cost)


def plan_of(model: str, gpus: int) -> Plan:
    """The largest micro-batch, a power of two, that fits under DDP with a tenth to spare; recompute where 32 do not."""
    pairs = GLOBAL_BATCH[gpus] // gpus
    for recompute in (False, True):
        size = pairs
        while size >= 32:
            plan = Plan(model, gpus, size, pairs // size, recompute)
            if prediction_of(plan, "DDP").total <= 0.9 * MEMORY:
                return plan
            size //= 2
    raise AssertionError(f"{model} does not fit on {gpus} GPUs at all")


def models_table() -> Iterator[list[str]]:
    yield ["model", "parameters", "weights, fp32", "AdamW", "FLOPs of a pair, forward", "forward and backward",
           "kept of a pair", "with `randomness: micro_batch`", "with recompute"]  # fmt: skip
    for model in MODELS:
        cost = cost_of(model, 32, False)
        weights, batch = cost.weights, cost.micro_batch
        kept = [slope(model, *case) for case in ((False, "pair"), (False, "micro_batch"), (True, "pair"))]
        yield [
            model, f"{weights.count / 1e6:.0f} M", in_bytes(weights.bytes), in_bytes(weights.optimizer_bytes),
            f"{batch.forward_flops / batch.pairs / 1e9:.0f} G", f"{batch.flops / batch.pairs / 1e9:.0f} G",
            *map(in_bytes, kept),
        ]  # fmt: skip


def slope(model: str, recompute: bool, randomness: str) -> float:
    """Bytes that one more pair keeps between the passes."""
    few, many = (cost_of(model, pairs, recompute, randomness).micro_batch.kept_bytes for pairs in (32, 64))
    return (many - few) / 32


def memory_table(model: str, plans: Sequence[Plan]) -> Iterator[list[str]]:
    yield [
        "GPUs",
        "engine",
        "weights",
        "gradients",
        "optimizer",
        "whole for a moment",
        "activations and loss",
        "all",
    ]
    for plan in plans:
        for engine in ENGINES:
            if engine.startswith("HSDP") and plan.gpus == GPUS_OF_A_NODE:
                continue
            found = prediction_of(plan, engine)
            share = found.share
            bytes_ = (
                share.weights,
                share.gradients,
                share.optimizer,
                share.gathered,
                found.activations,
                found.total,
            )
            yield [str(plan.gpus), engine, *map(in_bytes, bytes_)]


def sent_bytes(plan: Plan, engine: str) -> tuple[float, float]:
    """(inside the node, between nodes) that a GPU sends in a step for weights and gradients, as rings.

    Formulas as in docs/scaling.md; tests/benchmarks/collectives.py counts the same on two ranks.
    """
    weights = cost_of(plan.model, 32, False).weights
    outside = weights.outside_blocks_bytes
    gradients, parts = weights.trained_bytes, plan.accumulate
    ring = (plan.gpus - 1) / plan.gpus
    # blocks travel in bf16 and are gathered for every pass: 2A - 1 forward, A backward
    gathered = (3 * parts - 1) * (weights.bytes - outside) / 2 + outside
    kept = (weights.bytes - outside) / 2 + outside
    sent = {
        "DDP": 2 * gradients,
        "ZeRO-1": 2 * gradients + weights.bytes,
        "ZeRO-2": 2 * parts * gradients + weights.bytes,
        "ZeRO-3": parts * gradients + max(1, parts - 1) * weights.bytes,
        "FSDP2": gradients + gathered,
        "FSDP2, reshard=false": gradients + kept,
    }
    if engine in sent:
        far = plan.gpus > GPUS_OF_A_NODE
        return (0.0, sent[engine] * ring) if far else (sent[engine] * ring, 0.0)
    nodes = plan.gpus // GPUS_OF_A_NODE
    near = (gradients + gathered) * (GPUS_OF_A_NODE - 1) / GPUS_OF_A_NODE
    return near, 2 * gradients / GPUS_OF_A_NODE * (nodes - 1) / nodes


def feature_bytes(plan: Plan) -> float:
    """Sent for features and their gradients, by a ring."""
    found = loss_of(plan)
    return found.gathered_bytes + found.returned_bytes


def loss_of(plan: Plan) -> Any:  # Any: LossCost
    embed_dim = cost_of(plan.model, 32, False).embed_dim
    return loss_cost(config_of(plan.model), pairs=plan.pairs, world_size=plan.gpus, embed_dim=embed_dim)


def loss_table(plans: Sequence[Plan]) -> Iterator[list[str]]:
    yield ["model", "GPUs", "global batch", "FLOPs of the loss", "of a step", "tiles and features", "dense: logits of the rank's rows", "of all rows",
           "features sent"]  # fmt: skip
    for plan in plans:
        found = loss_of(plan)
        rows = 4 * 2 * plan.pairs * plan.pairs * plan.gpus  # both directions, fp32
        share = found.flops / (found.flops + tower_flops(plan))
        yield [plan.model, str(plan.gpus), f"{plan.pairs * plan.gpus:,}", f"{found.flops / 1e9:.0f} G", f"{share:.2%}",
               in_bytes(found.bytes), in_bytes(rows), in_bytes(rows * plan.gpus), in_bytes(feature_bytes(plan))]  # fmt: skip


def tower_flops(plan: Plan) -> float:
    batch = cost_of(plan.model, 32, plan.recompute).micro_batch
    a_pair = (plan.accumulate * batch.flops + (plan.accumulate - 1) * batch.forward_flops) / batch.pairs
    return a_pair * plan.micro_batch


def time_table(plans: Sequence[Plan]) -> Iterator[list[str]]:
    yield ["model", "GPUs", "pairs of a GPU", "recompute", "engine", "sent inside the node", "between nodes", "towers", "loss",
           "exchange", "step, between", "pairs/s of all, between"]  # fmt: skip
    for plan in plans:
        compute, loss = tower_flops(plan) / (PEAK_FLOPS * ACHIEVED), loss_of(plan).flops / LOSS_FLOPS
        for engine in ENGINES:
            if engine.startswith("HSDP") and plan.gpus == GPUS_OF_A_NODE:
                continue
            near, far = sent_bytes(plan, engine)
            link = INFINIBAND if plan.gpus > GPUS_OF_A_NODE else NVLINK
            exchange = near / NVLINK + far / INFINIBAND
            features = feature_bytes(plan) / link
            best = max(compute, exchange) + loss + features
            worst = compute + exchange + loss + features
            batch = plan.pairs * plan.gpus
            yield [
                plan.model, str(plan.gpus), f"{plan.micro_batch} x {plan.accumulate}", "yes" if plan.recompute else "no", engine,
                in_bytes(near), in_bytes(far), seconds(compute), seconds(loss), seconds(exchange + features),
                f"{seconds(best)} and {seconds(worst)}", f"{batch / worst:,.0f} and {batch / best:,.0f}",
            ]  # fmt: skip


def seconds(value: float) -> str:
    return f"{value:.2f} s" if value >= 1 else f"{value * 1000:.0f} ms"


def show(title: str, rows: Iterator[list[str]]) -> None:
    header, *body = rows
    print(f"\n### {title}\n\n| {' | '.join(header)} |\n|{'---|' * len(header)}")
    for row in body:
        print(f"| {' | '.join(row)} |")


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter).parse_args()
    logging.disable(logging.INFO)
    show("The models", models_table())
    plans = [plan_of(model, gpus) for model in MODELS for gpus in GLOBAL_BATCH]
    for model in MODELS:
        show(
            f"Memory of a rank: {model}", memory_table(model, [plan for plan in plans if plan.model == model])
        )
    show("The loss", loss_table(plans))
    show("Exchange and time", time_table(plans))


if __name__ == "__main__":
    main()
