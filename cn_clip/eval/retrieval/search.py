"""Best matches by inner product, exact and in a fixed order, on any torch device.

The score of a pair is its inner product in float64 rounded to float32; equal scores keep the gallery's order, so the
result depends on no kernel, device or block size. Nearly all of the work is a float32 matrix product that only draws
up a short list; a query whose list cannot be proved complete (more near-equal scores than the list holds) is scored
against the whole gallery in float64.

Shapes: Q queries, q queries of a block, G gallery, g gallery of a block, W short list, E embedding.
"""

from __future__ import annotations

import torch
from torch import Tensor

DEFAULT_BLOCK = 32768
_SCORES_AT_ONCE = 1 << 25  # 128 MB of float32
_PRODUCTS_AT_ONCE = 1 << 23  # 64 MB of float64
_ROWS_AT_ONCE = 128  # of an exhaustive search, whose sort keys take 8 bytes and several copies
_FLOAT32_UNIT = 2.0**-24
_LOW_BITS = (1 << 32) - 1


def top_k(
    query_QE: Tensor,
    gallery_GE: Tensor,
    k: int,
    device: torch.device | str = "cpu",
    block: int = DEFAULT_BLOCK,
) -> Tensor:
    """Positions [Q, min(k, G)] of the best matches in the gallery, best first, on the CPU.

    `block`: gallery rows scored at once. Features must be finite.
    """
    if k < 1 or block < 1:
        raise ValueError(f"k is {k} and block {block}: both must be at least 1")
    k = min(k, len(gallery_GE))
    gallery_GE = gallery_GE.to(device, torch.float32)
    rows = max(1, _SCORES_AT_ONCE // min(block, max(1, len(gallery_GE))))
    found = [
        _search(part_qE.to(device, torch.float32), gallery_GE, k, block) for part_qE in query_QE.split(rows)
    ]
    return torch.cat(found).cpu() if found else torch.empty(0, k, dtype=torch.long)


def _search(query_qE: Tensor, gallery_GE: Tensor, k: int, block: int) -> Tensor:
    width = min(2 * k + 8, len(gallery_GE))
    rough_qW, places_qW = _short_list(query_qE, gallery_GE, width, block)
    scores_qW = _exact_scores(query_qE, gallery_GE, places_qW)
    keys_qk = _sort_keys(scores_qW, places_qW).topk(k).values
    if width < len(gallery_GE):
        last_q = scores_qW.topk(k).values[:, -1].double()
        left_out_q = rough_qW[:, -1].double() + _rounding_bound(query_qE, gallery_GE)
        unsure_q = (
            last_q - 2 * _FLOAT32_UNIT * last_q.abs() <= left_out_q
        )  # or the best left out may tie or win
        if unsure_q.any():
            parts = query_qE[unsure_q].split(_ROWS_AT_ONCE)
            keys_qk[unsure_q] = torch.cat([_search_exhaustively(p, gallery_GE, k, block) for p in parts])
    return _places(keys_qk)


def _short_list(query_qE: Tensor, gallery_GE: Tensor, width: int, block: int) -> tuple[Tensor, Tensor]:
    """Highest `width` float32 scores and their places, highest first."""
    rough, places = [], []
    for start in range(0, len(gallery_GE), block):
        scores_qg = query_qE @ gallery_GE[start : start + block].T
        best = scores_qg.topk(min(width, scores_qg.shape[1]))
        rough.append(best.values)
        places.append(best.indices + start)
    rough_q, places_q = torch.cat(rough, dim=1), torch.cat(places, dim=1)
    best = rough_q.topk(width)
    return best.values, places_q.gather(1, best.indices)


def _exact_scores(query_qE: Tensor, gallery_GE: Tensor, places_qW: Tensor) -> Tensor:
    """Scores of the short list; the same order of additions for every place, so equal rows score equally."""
    rows = max(1, _PRODUCTS_AT_ONCE // max(1, places_qW.shape[1] * gallery_GE.shape[1]))
    parts = [
        (query_E.double()[:, None] * gallery_GE[places_W].double()).sum(-1).float()
        for query_E, places_W in zip(query_qE.split(rows), places_qW.split(rows), strict=True)
    ]
    return torch.cat(parts)


def _rounding_bound(query_qE: Tensor, gallery_GE: Tensor) -> Tensor:
    """How far a float32 inner product can be from the true one, per query (Higham, Accuracy and Stability, 3.1)."""
    longest = torch.linalg.vector_norm(gallery_GE, dim=-1).max().double()
    lengths_q = torch.linalg.vector_norm(query_qE, dim=-1).double()
    return (gallery_GE.shape[1] + 4) * _FLOAT32_UNIT * lengths_q * longest


def _search_exhaustively(query_qE: Tensor, gallery_GE: Tensor, k: int, block: int) -> Tensor:
    """Sort keys of the best k, from float64 scores of the whole gallery."""
    best_qk = torch.empty(len(query_qE), 0, dtype=torch.long, device=query_qE.device)
    for start in range(0, len(gallery_GE), block):
        part_gE = gallery_GE[start : start + block]
        places_g = torch.arange(start, start + len(part_gE), device=part_gE.device)
        keys_qg = _sort_keys((query_qE.double() @ part_gE.double().T).float(), places_g)
        best_qk = torch.cat([best_qk, keys_qg.topk(min(k, len(part_gE))).values], dim=1)
        best_qk = best_qk.topk(min(k, best_qk.shape[1])).values
    return best_qk


def _sort_keys(scores: Tensor, places: Tensor) -> Tensor:
    """Integers that order by score and, where scores are equal, put the lower place higher."""
    bits = (scores + 0.0).view(torch.int32).long()  # + 0.0: -0.0 equals 0.0
    ordered = torch.where(
        bits < 0, bits ^ 0x7FFFFFFF, bits
    )  # float bits below zero count the other way round
    return (ordered << 32) + (_LOW_BITS - places)


def _places(keys: Tensor) -> Tensor:
    return _LOW_BITS - (keys & _LOW_BITS)
