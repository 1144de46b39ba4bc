"""Whether this set-up (engine, ranks, micro-batches) computes the gradient that one process would compute."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from cn_clip.config.schema import Lora, Model, Parallel, TrainConfig
from cn_clip.data.batches import PairBatch
from cn_clip.parallel.gather import from_main
from cn_clip.parallel.ranks import Ranks
from cn_clip.training.diagnosis.finding import Finding, Number
from cn_clip.training.diagnosis.trial import TINY_IMAGE, TINY_TEXT, made_up_pairs, trial_task

PAIRS = 4
"""Of one micro-batch."""
TOKENS = 12
ACCUMULATE = {True: 4, False: 2}
"""Micro-batches of a rank: alone, or among others."""
LARGEST = {"cpu": 1e-5, "cuda": 1e-3}
"""Relative difference in fp32 that rounding explains: 3e-7 was seen on CPU, a gradient that did not meet is off by 0.4
and more. CUDA's convolutions round to TF32."""


def check_exact_step(config: TrainConfig, ranks: Ranks) -> Finding:
    """One step of tiny towers in fp32 with the config's engine and loss, against all its pairs in one process. Collective."""
    tiny = _tiny(config)
    accumulate = ACCUMULATE[ranks.world_size == 1]
    cut = _gradients(tiny, ranks, accumulate)
    difference = float("nan")
    if ranks.is_main:
        alone = replace(ranks, rank=0, world_size=1)
        whole = _gradients(
            replace(tiny, parallel=Parallel()), alone, 1, num_pairs=PAIRS * accumulate * ranks.world_size
        )
        difference = relative_difference(whole, cut)
    return judge(from_main(difference, ranks), config.parallel.engine, accumulate, ranks)


def _tiny(config: TrainConfig) -> TrainConfig:
    """The config with towers, type and batch that are quick and exact; engine and loss are its own."""
    options = replace(config.loss.options, gather=True, gradient="exact")
    keyed = config.train.randomness == "pair"
    return replace(
        config,
        model=Model(image=TINY_IMAGE, text=TINY_TEXT, mask_ratio=0.5 if keyed else 0.0),
        lora=Lora(),
        loss=replace(config.loss, options=options),
        train=replace(config.train, precision="fp32"),
        parallel=replace(config.parallel, sync_batchnorm=False),
    )


def _gradients(
    config: TrainConfig, ranks: Ranks, accumulate: int, num_pairs: int | None = None
) -> Mapping[str, Tensor]:
    """Joined gradients on the main rank; `num_pairs`: all of them in one micro-batch."""
    task = trial_task(config, ranks)
    if config.train.randomness == "micro_batch":
        for module in task.module.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0  # drawn for each micro-batch, so no other cut could see the same
    size = num_pairs or PAIRS
    pairs = made_up_pairs(task.module, num_pairs or PAIRS * accumulate * ranks.world_size, TOKENS)
    numbers = [a * ranks.world_size + ranks.rank for a in range(accumulate)]
    blocks = [_block(pairs, number, size).to(ranks.device) for number in numbers]
    task.engine.zero_grad()
    task.accumulate_gradients(blocks, 1)
    return {name: gradient.cpu().clone() for name, gradient in task.engine.gradients().items()}


def _block(pairs: PairBatch, number: int, size: int) -> PairBatch:
    return pairs.each(lambda rows: rows[number * size : (number + 1) * size])


def relative_difference(whole: Mapping[str, Tensor], cut: Mapping[str, Tensor]) -> float:
    """Norm of the difference of all gradients over the norm of the first; infinite where one lacks some."""
    if whole.keys() != cut.keys():
        return float("inf")
    apart = sum((whole[name] - cut[name].view_as(whole[name])).double().norm() ** 2 for name in whole)
    size = sum(gradient.double().norm() ** 2 for gradient in whole.values())
    return float((apart / size) ** 0.5)


def judge(difference: float, engine: str, accumulate: int, ranks: Ranks) -> Finding:
    """Verdict on a relative difference."""
    largest = LARGEST.get(ranks.device.type, LARGEST["cuda"])
    what = (
        f"{ranks.world_size} ranks with {accumulate} micro-batches each under {engine}"
        if ranks.world_size > 1
        else f"{accumulate} micro-batches"
    )
    says = f"the gradient of {what} differs from that of one process with one batch by {difference:.1e} of its length"
    numbers: dict[str, Number] = {
        "relative_difference": difference,
        "largest_allowed": largest,
        "world_size": ranks.world_size,
        "accumulate": accumulate,
        "engine": engine,
    }
    if difference <= largest:
        return Finding(check="exactness", says=says, numbers=numbers)
    return Finding(
        check="exactness",
        says=says,
        verdict="wrong",
        numbers=numbers,
        next_step="do not train with this set-up: try parallel.engine=ddp, look whether all nodes have the same versions "
        "(line `package`), and report this line with the versions",
    )
