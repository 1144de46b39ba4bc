"""What one rank holds of weights, gradients, optimizer and average, by engine; bytes, without activations.

ZeRO's stages 1 to 3 are those of arXiv:1910.02054, FSDP2 is torch's `fully_shard`, HSDP the same inside groups of ranks.
"""

from __future__ import annotations

from dataclasses import dataclass

from cn_clip.config.schema import Parallel
from cn_clip.parallel.engines.zero_settings import LARGEST_BUCKET
from cn_clip.training.diagnosis.step_cost import Weights

FP32 = 4
DEEPSPEED_LIVE = 1e9
"""Elements of whole weights that stage 3 keeps (`stage3_max_live_parameters`)."""
GATHERED_BLOCKS = 2
"""Blocks that FSDP2 has whole at one time: the one that computes and the next one, gathered beside it."""


@dataclass(frozen=True, kw_only=True)
class Share:
    """Bytes of one rank."""

    weights: float
    gradients: float
    optimizer: float
    average: float
    """Of the EMA."""
    gathered: float = 0.0
    """Weights and gradients that are whole for a moment, and what they are sent from."""

    @property
    def total(self) -> float:
        return self.weights + self.gradients + self.optimizer + self.average + self.gathered


@dataclass(frozen=True, kw_only=True)
class Cut:
    """How a run divides its model."""

    settings: Parallel
    world_size: int
    accumulate: int = 1
    travel_bytes: int = FP32
    """Of an element of the weights where they are gathered: 2 under autocast, 4 in fp32."""
    has_average: bool = False

    @property
    def engine(self) -> str:
        """What really joins the ranks: one process has nobody to share with."""
        return self.settings.engine if self.world_size > 1 else "ddp"

    @property
    def shards(self) -> int:
        """Ranks that share one copy of what is cut up."""
        if self.engine == "ddp":
            return 1
        return (self.settings.shard_ranks if self.engine == "fsdp" else None) or self.world_size


def share_of(weights: Weights, cut: Cut) -> Share:
    """What each rank holds under the engine of the settings."""
    if cut.engine == "fsdp":
        return _fsdp(weights, cut)
    if cut.engine.startswith("zero"):
        return _zero(weights, cut)
    return Share(
        weights=weights.bytes + weights.buffer_bytes,
        gradients=weights.trained_bytes,
        optimizer=weights.optimizer_bytes,
        average=_average(weights, cut),
        # gradients of micro-batches that do not synchronise are others than DDP's buckets
        gathered=weights.trained_bytes if cut.world_size > 1 and cut.accumulate > 1 else 0.0,
    )


def _average(weights: Weights, cut: Cut) -> float:
    return weights.trained * FP32 if cut.has_average else 0.0


def _fsdp(weights: Weights, cut: Cut) -> Share:
    """Matrices are cut up, vectors are whole on every rank."""
    cut_share = weights.matrix_bytes / weights.bytes / cut.shards + 1 - weights.matrix_bytes / weights.bytes
    travel = cut.travel_bytes / FP32
    blocks = weights.bytes - weights.outside_blocks_bytes
    at_once = GATHERED_BLOCKS * weights.largest_block_bytes if cut.settings.reshard else blocks
    # what is outside the blocks travels in its own type
    gathered = at_once * travel + weights.outside_blocks_bytes
    if cut.accumulate > 1 and cut.settings.sync == "step":
        gathered += weights.trained_bytes  # gradients are whole until the last micro-batch
    else:
        gathered += GATHERED_BLOCKS * weights.largest_block_bytes
    return Share(
        weights=weights.bytes * cut_share + weights.buffer_bytes,
        gradients=weights.trained_bytes * cut_share,
        optimizer=weights.optimizer_bytes * cut_share,
        average=_average(weights, cut) * cut_share,
        gathered=gathered,
    )


def _zero(weights: Weights, cut: Cut) -> Share:
    """Stage 1 cuts up the optimizer and its own fp32 copy of the weights, 2 the gradients too, 3 the weights too."""
    stage, ranks = int(cut.engine[-1]), cut.world_size
    copy = weights.trained * FP32 / ranks
    bucket = min(LARGEST_BUCKET, weights.trained) * FP32
    live = min(DEEPSPEED_LIVE, weights.count) * FP32 if stage == 3 else 0.0
    return Share(
        weights=weights.bytes / (ranks if stage == 3 else 1) + weights.buffer_bytes,
        gradients=weights.trained_bytes / (ranks if stage >= 2 else 1),
        optimizer=weights.optimizer_bytes / ranks + copy,
        average=_average(weights, cut),
        gathered=bucket + live,
    )
