"""Memory of one rank for a config, predicted without allocating it, and what to change where it does not fit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from cn_clip.config.schema import TrainConfig
from cn_clip.parallel.ranks import Ranks
from cn_clip.training.diagnosis.finding import Finding, in_bytes
from cn_clip.training.diagnosis.loss_cost import LossCost, loss_cost
from cn_clip.training.diagnosis.shares import Cut, Share, share_of
from cn_clip.training.diagnosis.step_cost import StepCost, step_cost

CUDA_BYTES = 1.0 * 2**30
"""Assumed for CUDA's context and the workspaces of cuBLAS, cuDNN and NCCL; not measured here."""
CUDA_FRAGMENTS = 1.05
"""Assumed for what torch's allocator holds beyond what is asked of it; not measured here."""
HOST_BYTES, HOST_FRAGMENTS = 32.0 * 2**20, 1.15
"""By which a process on a CPU grows beyond its tensors (glibc): 2.65 GB for 2.30, 1.15 GB for 0.97, 65 MB for 35 MB were
measured (tests/training/diagnosis/memory_worker.py)."""
TIGHT = 0.9
"""Share of the memory from which on a longer caption or a library's workspace may be the one too many."""


@dataclass(frozen=True)
class Prediction:
    """Bytes of one rank at the fullest moment of a step."""

    cost: StepCost
    share: Share
    loss: LossCost
    batches: float
    """Pictures and tokens of all micro-batches of a step."""
    teacher: float
    """Weights of the teacher, as large as its files are."""
    overhead: float
    """Beside the tensors: the device's own, and the allocator's."""
    gradients_wait: bool = True
    """Whether gradients are there before the first backward pass, as those of earlier micro-batches or DDP's buffers."""

    @property
    def activations(self) -> float:
        """The fullest of: backward pass of a micro-batch; loss, while the graph of one is kept. Beside the gradients."""
        micro_batch = self.cost.micro_batch
        at_loss = micro_batch.kept_bytes + self.loss.bytes
        if self.gradients_wait:
            return max(micro_batch.peak_bytes + self.features, at_loss)
        return (
            max(micro_batch.fresh_peak_bytes + self.features, at_loss, self.share.gradients)
            - self.share.gradients
        )

    @property
    def features(self) -> float:
        """Gradients of the features, which wait for their micro-batch."""
        return min(self.loss.bytes, 2.0 * self.loss.gathered_bytes + self.loss.returned_bytes)

    @property
    def tensors(self) -> float:
        return self.share.total + self.activations + self.batches + self.teacher

    @property
    def total(self) -> float:
        return self.tensors + self.overhead

    def parts(self) -> dict[str, float]:
        """What the total is made of, by name."""
        return {
            "weights": self.share.weights,
            "gradients": self.share.gradients,
            "optimizer": self.share.optimizer,
            "average": self.share.average,
            "gathered": self.share.gathered,
            "activations": self.activations,
            "batches": self.batches,
            "teacher": self.teacher,
            "overhead": self.overhead,
        }


def predict(
    config: TrainConfig, world_size: int, device_type: str, *, cost: StepCost | None = None
) -> Prediction:
    """Memory of each of `world_size` ranks; `cost` where it is known already."""
    if cost is None:
        cost = step_cost(config, device_type, world_size=world_size)
    accumulate = config.train.accumulate
    share = share_of(cost.weights, cut_of(config, world_size))
    loss = loss_cost(
        config,
        pairs=cost.micro_batch.pairs * accumulate,
        world_size=world_size,
        embed_dim=cost.embed_dim,
    )
    batches = float(cost.batch_bytes * accumulate)
    found = Prediction(
        cost,
        share,
        loss,
        batches=batches,
        teacher=teacher_bytes(config),
        overhead=0.0,
        gradients_wait=world_size > 1 or accumulate > 1,
    )
    fixed, fragments = (CUDA_BYTES, CUDA_FRAGMENTS) if device_type == "cuda" else (HOST_BYTES, HOST_FRAGMENTS)
    return replace(found, overhead=fixed + found.tensors * (fragments - 1))


def teacher_bytes(config: TrainConfig) -> float:
    """Of the files of `distill.teacher`; 0 for features that were kept, and for a name on ModelScope."""
    if not config.distill.enabled or config.distill.teacher is None:
        return 0.0
    path = Path(config.distill.teacher)
    files = [path] if path.is_file() else [*path.glob("*.safetensors"), *path.glob("*.bin")]
    return float(sum(file.stat().st_size for file in files if file.suffix != ".jsonl"))


def cut_of(config: TrainConfig, world_size: int) -> Cut:
    return Cut(
        settings=config.parallel,
        world_size=world_size,
        accumulate=config.train.accumulate,
        travel_bytes=2 if config.train.precision != "fp32" else 4,
        has_average=config.ema.decay is not None,
    )


def check_memory(config: TrainConfig, prediction: Prediction, available: float, *, ranks: Ranks) -> Finding:
    """Whether a rank's step fits into what its device has."""
    pairs = prediction.cost.micro_batch.pairs
    numbers = {
        **{f"{name}_bytes": round(count) for name, count in prediction.parts().items()},
        "total_bytes": round(prediction.total),
        "available_bytes": round(available),
        "pairs": pairs,
    }
    says = f"{in_bytes(prediction.total)} a rank for {pairs} pairs at once ({_listed(prediction)}); {in_bytes(available)} are there"
    if prediction.total <= TIGHT * available:
        return Finding(check="memory", says=says, numbers=numbers)
    advice = _advice(config, ranks.world_size, ranks.device.type, TIGHT * available)
    return Finding(
        check="memory",
        says=says,
        verdict="wrong" if prediction.total > available else "slow",
        numbers=numbers,
        next_step=advice,
    )


def _listed(prediction: Prediction) -> str:
    parts: Mapping[str, float] = prediction.parts()
    largest = sorted(parts, key=lambda name: -parts[name])
    return ", ".join(
        f"{name} {in_bytes(parts[name])}" for name in largest if parts[name] > 0.01 * prediction.total
    )


def _advice(config: TrainConfig, world_size: int, device_type: str, allowed: float) -> str:
    """The change that keeps the global batch and costs the least time, of those that are enough."""
    size, accumulate = config.train.batch_size, config.train.accumulate
    fitting = _largest_fit(config, world_size, device_type, allowed)
    if fitting is not None:
        return (
            f"set train.batch_size={fitting} and train.accumulate={accumulate * size // fitting}: the same global batch, "
            "the same gradients"
        )
    recomputing = replace(config, model=replace(config.model, recompute=True))
    if not config.model.recompute:
        fitting = _largest_fit(recomputing, world_size, device_type, allowed, and_itself=True)
    if fitting is not None:
        more = (
            ""
            if fitting == size
            else f", train.batch_size={fitting} and train.accumulate={accumulate * size // fitting}"
        )
        return f"set model.recompute=true (--grad-checkpointing){more}: the same gradients"
    return (
        "even one pair at a time does not fit: set parallel.engine=fsdp and take more ranks, or take smaller towers, "
        "smaller pictures (model.image_px) or a frozen tower (model.freeze_image)"
    )


def _largest_fit(
    config: TrainConfig, world_size: int, device_type: str, allowed: float, *, and_itself: bool = False
) -> int | None:
    """Largest whole fraction of the micro-batch that fits, with as much more accumulation."""
    size = config.train.batch_size
    sizes = [size // parts for parts in range(1 if and_itself else 2, size + 1) if size % parts == 0]
    if not sizes:
        return None
    most, least = (predict(_cut_to(config, pairs), world_size, device_type).total for pairs in (sizes[0], 1))
    # activations grow in a straight line with the pairs, and nothing else of a step does
    slope = (most - least) / max(1, sizes[0] - 1)
    return next((pairs for pairs in sizes if least + slope * (pairs - 1) <= allowed), None)


def _cut_to(config: TrainConfig, pairs: int) -> TrainConfig:
    """The same global batch in micro-batches of `pairs`."""
    accumulate = config.train.accumulate * config.train.batch_size // pairs
    return replace(config, train=replace(config.train, batch_size=pairs, accumulate=accumulate))
