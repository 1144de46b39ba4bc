"""Collectives, as plain functions that are the identity for one process.

Shapes: W ranks, R rows of this rank, N = W·R rows of all.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from cn_clip.parallel.ranks import Ranks

Plain = TypeVar("Plain")


def gather_rows(rows_R: Tensor, ranks: Ranks) -> Tensor:
    """Rows of all ranks in rank order, (R, ...) -> (N, ...); carries no gradient."""
    if ranks.world_size == 1:
        return rows_R.detach()
    rows_R = rows_R.detach().contiguous()
    gathered = rows_R.new_empty((ranks.world_size * len(rows_R), *rows_R.shape[1:]))
    dist.all_gather(list(gathered.chunk(ranks.world_size)), rows_R)  # into views: no second copy
    return gathered


def sum_rows_to_owner(rows_N: Tensor, ranks: Ranks) -> Tensor:
    """Sum over ranks of each row, handed to the rank that owns it, (N, ...) -> (R, ...)."""
    if ranks.world_size == 1:
        return rows_N
    if dist.get_backend() == "gloo":  # gloo has no reduce-scatter for every dtype
        dist.all_reduce(rows_N)
        return rows_N.chunk(ranks.world_size)[ranks.rank]
    own = rows_N.new_empty((len(rows_N) // ranks.world_size, *rows_N.shape[1:]))
    dist.reduce_scatter(own, list(rows_N.contiguous().chunk(ranks.world_size)))
    return own


def sum_over_ranks(value: Tensor, ranks: Ranks) -> Tensor:
    """Sum of one tensor over ranks, on every rank."""
    if ranks.world_size > 1:
        dist.all_reduce(value)
    return value


def from_main(value: Plain, ranks: Ranks) -> Plain:
    """What rank 0 holds, on every rank: decisions are made once, so ranks cannot disagree."""
    if ranks.world_size == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0, device=ranks.device if ranks.device.type == "cuda" else None)
    return box[0]


def gather_objects(value: Plain, ranks: Ranks) -> list[Plain]:
    """What each rank holds, in rank order, on every rank; for small plain values."""
    if ranks.world_size == 1:
        return [value]
    values: list[Plain] = [value] * ranks.world_size
    dist.all_gather_object(values, value)
    return values


def any_rank(flags: Sequence[bool], ranks: Ranks) -> list[bool]:
    """Which of the flags is raised on at least one rank."""
    if ranks.world_size == 1:
        return list(flags)
    raised = torch.tensor([int(flag) for flag in flags], dtype=torch.int32, device=ranks.device)
    dist.all_reduce(raised, op=dist.ReduceOp.MAX)
    return [bool(flag) for flag in raised.tolist()]
