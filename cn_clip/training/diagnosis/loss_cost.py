"""What the loss of the global batch takes on one rank: measured on a small tile, told for any size.

Letters: R pairs of this rank, N of all, E embedding, T side of a tile.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache

import torch
from torch import Tensor

from cn_clip.config.schema import Part, TrainConfig
from cn_clip.losses.pair import PairIds, PairLoss
from cn_clip.training.diagnosis.live_bytes import LiveBytes
from cn_clip.training.registry import module_of

FP32 = 4
SIDE = 128
"""Of the tile that is measured."""
NUM_IDS = 6
"""int64 of each pair that are gathered: position, four ids, and a notice."""


@dataclass(frozen=True)
class LossCost:
    """Of one rank and step."""

    bytes: float
    """Most at once: features of all, their gradients, one tile."""
    flops: float
    """Four products of the rank's pictures with all captions, 2 FLOPs a multiply and add: 8·R·N·E."""
    gathered_bytes: float
    """Features and ids that arrive from the other ranks."""
    returned_bytes: float
    """Gradients of all captions' features, summed up and handed back to their ranks."""


def loss_cost(config: TrainConfig, *, pairs: int, world_size: int, embed_dim: int) -> LossCost:
    """Cost for `pairs` of this rank (all its micro-batches) among `world_size` ranks with as many."""
    gathers = world_size > 1 and config.loss.options.gather
    columns = pairs * world_size if gathers else pairs
    side = vars(config.loss.options).get("tile") or columns
    tile = bytes_per_logit(config.loss) * min(side, pairs) * min(side, columns)
    # features of all micro-batches, joined, and their gradients; of the captions those of all ranks too
    features = FP32 * embed_dim * (5 * pairs + (2 * columns if gathers else pairs))
    return LossCost(
        bytes=tile + features + min(side, pairs) * embed_dim * FP32 + columns * NUM_IDS * 8,
        flops=8.0 * pairs * columns * embed_dim,
        gathered_bytes=(columns - pairs) * (embed_dim * FP32 + NUM_IDS * 8),
        returned_bytes=(columns - pairs) * embed_dim * FP32,
    )


@cache
def _measured(kind: str, options: object) -> float:
    loss: PairLoss = module_of("pair_loss", kind).build(options)
    generator = torch.Generator().manual_seed(0)
    image_RE, text_RE = torch.nn.functional.normalize(torch.randn(2, SIDE, 1, generator=generator), dim=-1)
    ids = torch.arange(SIDE)
    pair_ids = PairIds(ids, ids, ids, ids, ids)
    with LiveBytes() as live:
        bias = torch.zeros(()) if kind == "sigmoid" else None
        loss(image_RE, text_RE, torch.tensor(10.0), pair_ids, pair_ids, _alone, bias=bias)
    return live.peak / SIDE**2


def _alone(columns_kN: Tensor) -> Tensor:
    return columns_kN[None]


def bytes_per_logit(loss: Part) -> float:
    """Bytes that one entry of a tile takes at most, with the loss's own code on a small batch."""
    options = loss.options
    if "tile" in vars(options):
        options = replace(options, tile=SIDE)
    return _measured(loss.type, options)
