"""Pairs a second that a rank can train on: measured by real steps where they fit, else computed from FLOPs."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

import torch

from cn_clip.clip.model import CLIP
from cn_clip.config.schema import TrainConfig
from cn_clip.data.batches import PairBatch
from cn_clip.parallel.precision import Precision
from cn_clip.parallel.ranks import Ranks
from cn_clip.training.diagnosis.finding import Finding, rounded
from cn_clip.training.diagnosis.memory import Prediction
from cn_clip.training.diagnosis.trial import made_up_pairs, trial_task

STEPS = 3
"""Steps that are timed, after one that is not; the median counts."""
USUAL_SHARE = 0.5
"""Of the rate of large matrix products that a step reaches, where none could be measured: 0.4 to 0.7 is usual."""
SIDE = {"cuda": 8192, "cpu": 1024}
"""Of the matrices whose product is timed."""
LEAST_SHARE = 0.15
"""Share of the product's rate below which a step waits for something else than arithmetic."""


@dataclass(frozen=True)
class StepRate:
    """Of one rank, for a whole optimizer step."""

    pairs_per_second: float
    seconds: float
    """Of one optimizer step."""
    is_measured: bool
    flops_per_second: float
    """Of the step."""
    gemm_flops_per_second: float
    """Of a large matrix product in the type of the arithmetic."""
    why_not: str = ""
    """Why no step was measured."""

    @property
    def share_of_gemm(self) -> float:
        return self.flops_per_second / self.gemm_flops_per_second

    @property
    def wastes(self) -> bool:
        """Whether a measured step waits for something else than arithmetic."""
        return self.is_measured and self.share_of_gemm < LEAST_SHARE


def measure_steps(
    config: TrainConfig,
    prediction: Prediction,
    ranks: Ranks,
    *,
    available: float,
    longest_seconds: float,
    batch: PairBatch | None,
) -> StepRate:
    """Collective. `batch`: of the loader, else made up; `longest_seconds`: what the steps may take together."""
    gemm = gemm_rate(config, ranks)
    flops = step_flops(config, prediction)
    expected = flops / (USUAL_SHARE * gemm)
    pairs = config.train.batch_size * config.train.accumulate
    why_not = ""
    if prediction.total > available:
        why_not = "a step does not fit into memory"
    elif expected * (STEPS + 1) > longest_seconds:
        why_not = f"{STEPS + 1} steps would take longer than {longest_seconds:.0f} s"
    if why_not:
        return StepRate(pairs / expected, expected, False, flops / expected, gemm, why_not)
    seconds = _timed(config, ranks, batch)
    return StepRate(pairs / seconds, seconds, True, flops / seconds, gemm)


def step_flops(config: TrainConfig, prediction: Prediction) -> float:
    """Of one rank and optimizer step: all micro-batches but one are encoded once more, and the loss."""
    cost, accumulate = prediction.cost.micro_batch, config.train.accumulate
    return accumulate * cost.flops + (accumulate - 1) * cost.forward_flops + prediction.loss.flops


def gemm_rate(config: TrainConfig, ranks: Ranks) -> float:
    """FLOPs a second of one large product in the type the towers compute in."""
    precision = Precision(config.train.precision, ranks.device)
    dtype = precision.autocast_dtype or precision.weights_dtype
    side = SIDE.get(ranks.device.type, 1024)
    matrix = torch.randn(side, side, device=ranks.device, dtype=torch.float32).to(dtype)
    seconds = []
    for _ in range(5):
        _finish(ranks)
        started = time.perf_counter()
        _ = matrix @ matrix
        _finish(ranks)
        seconds.append(time.perf_counter() - started)
    return float(2 * side**3 / min(seconds))


def _timed(config: TrainConfig, ranks: Ranks, batch: PairBatch | None) -> float:
    task = trial_task(config, ranks)
    batches = batches_of(task.module, config, ranks, batch)
    seconds = []
    for step in range(1, STEPS + 2):
        _finish(ranks)
        started = time.perf_counter()
        task.engine.zero_grad()
        task.accumulate_gradients(batches, step)
        task.engine.step(config.optim.max_norm)
        task.after_step()
        _finish(ranks)
        seconds.append(time.perf_counter() - started)
    return sorted(seconds[1:])[STEPS // 2]


def batches_of(model: CLIP, config: TrainConfig, ranks: Ranks, batch: PairBatch | None) -> list[PairBatch]:
    """Micro-batches of a step of this rank, all with the pairs of `batch`, or made-up ones where it has another size."""
    if batch is None or len(batch) != config.train.batch_size:
        batch = made_up_pairs(model, config.train.batch_size, config.data.context_length)
    places = [number * ranks.world_size + ranks.rank for number in range(config.train.accumulate)]
    return [_at(batch, place).to(ranks.device) for place in places]


def _at(batch: PairBatch, place: int) -> PairBatch:
    """The same pairs elsewhere in the order, so that no two micro-batches seem to hold copies of each other."""
    shift = place << 32
    return replace(batch, positions_B=batch.positions_B + shift, pair_ids_B=batch.pair_ids_B + shift)


def _finish(ranks: Ranks) -> None:
    if ranks.device.type == "cuda":
        torch.cuda.synchronize(ranks.device)


def check_step(rate: StepRate) -> Finding:
    """How fast a step is, and whether it is arithmetic that it spends its time on."""
    share = rate.share_of_gemm
    numbers = {
        "pairs_per_second": rate.pairs_per_second,
        "step_seconds": rate.seconds,
        "is_measured": rate.is_measured,
        "step_flops_per_second": rate.flops_per_second,
        "gemm_flops_per_second": rate.gemm_flops_per_second,
        "share_of_gemm": share,
    }
    if not rate.is_measured:
        return Finding(
            check="step",
            says=f"about {rounded(rate.pairs_per_second)} pairs/s a rank, computed ({rate.why_not}): {USUAL_SHARE:.0%} of the "
            f"{rate.gemm_flops_per_second / 1e12:.3g} TFLOP/s of a large matrix product",
            numbers=numbers,
        )
    says = (
        f"{rounded(rate.pairs_per_second)} pairs/s a rank, {rate.seconds:.3g} s a step, {share:.0%} of the "
        f"{rate.gemm_flops_per_second / 1e12:.3g} TFLOP/s of a large matrix product"
    )
    if rate.wastes:
        return Finding(
            check="step",
            says=says,
            verdict="slow",
            numbers=numbers,
            next_step="give each step more to do (train.batch_size), compile the blocks (model.compile=true), and see that no "
            "other process uses the device",
        )
    return Finding(check="step", says=says, numbers=numbers)
