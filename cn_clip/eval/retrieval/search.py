"""Best matches by inner product, exact and in a fixed order, on any torch device.

The score of a pair is its inner product in float64 rounded to float32; equal scores keep the gallery's order, so the
result depends on no kernel, device or block size. Nearly all of the work is a quick matrix product (bfloat16 where
the CPU multiplies it natively, else float32) that only draws up a short list, scored exactly afterwards. A query whose
list cannot be proved complete is searched again with the next finer product, at last in float64 throughout.

Shapes: Q queries, q queries of a block, G gallery, g gallery of a block, W short list, E embedding.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

DEFAULT_BLOCK = 32768
_SCORES_AT_ONCE = 1 << 25  # 128 MB of float32
_PRODUCTS_AT_ONCE = 1 << 18  # 2 MB of float64: stays in cache
_ROWS_AT_ONCE = 128  # of a float64 search, whose sort keys take 8 bytes and several copies
_LOW_BITS = (1 << 32) - 1
_UNIT = {torch.float32: 2.0**-24, torch.bfloat16: 2.0**-8}  # largest relative error of one rounding
_EXTRA_WIDTH = {torch.float32: 8, torch.bfloat16: 38}  # of the short list: what keeps second searches rare


@dataclass(frozen=True)
class _Gallery:
    """The gallery in the type of one rough product, and how far that rounding moved it."""

    exact: Tensor
    """[G, E] in float32."""
    rough: Tensor
    """[G, E] in the type of the product."""
    longest: Tensor
    """Largest length of a row."""
    farthest: Tensor
    """Largest distance between a row and its rounded self."""


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
    if not k or not len(query_QE):
        return torch.empty(len(query_QE), k, dtype=torch.long)
    gallery_GE = gallery_GE.to(device, torch.float32)
    galleries = [_roughen(gallery_GE, dtype) for dtype in _rough_dtypes(gallery_GE.device)]
    rows = max(1, _SCORES_AT_ONCE // min(block, len(gallery_GE)))
    found = [
        _search(part_qE.to(device, torch.float32), galleries, k, block) for part_qE in query_QE.split(rows)
    ]
    return _places(torch.cat(found)).cpu()


def _rough_dtypes(device: torch.device) -> list[torch.dtype]:
    """Types of the rough products, quickest first."""
    native_bfloat16 = device.type == "cpu" and torch.cpu._is_avx512_bf16_supported()
    return [torch.bfloat16, torch.float32] if native_bfloat16 else [torch.float32]


def _roughen(gallery_GE: Tensor, dtype: torch.dtype) -> _Gallery:
    rough_GE = gallery_GE.to(dtype)
    longest = torch.linalg.vector_norm(gallery_GE, dim=-1).max().double()
    farthest = torch.zeros_like(longest)
    if dtype != gallery_GE.dtype:
        farthest = torch.linalg.vector_norm(gallery_GE - rough_GE, dim=-1).max().double()
    return _Gallery(gallery_GE, rough_GE, longest, farthest)


def _search(query_qE: Tensor, galleries: list[_Gallery], k: int, block: int) -> Tensor:
    """Sort keys of the best k; `galleries` from the quickest to the finest."""
    gallery, *finer = galleries
    width = min(2 * k + _EXTRA_WIDTH[gallery.rough.dtype], len(gallery.exact))
    rough_qW, places_qW = _short_list(query_qE.to(gallery.rough.dtype), gallery.rough, width, block)
    scores_qW = _exact_scores(query_qE, gallery.exact, places_qW)
    keys_qk = _sort_keys(scores_qW, places_qW).topk(k).values
    if width == len(gallery.exact):
        return keys_qk
    last_q = scores_qW.topk(k).values[:, -1].double()
    left_out_q = _highest_left_out(query_qE, gallery, rough_qW.min(dim=-1).values.double())
    unsure_q = last_q - 2 * _UNIT[torch.float32] * last_q.abs() <= left_out_q  # one left out may tie or win
    if unsure_q.any():
        again_qE = query_qE[unsure_q]
        if finer:
            keys_qk[unsure_q] = _search(again_qE, finer, k, block)
        else:
            parts = again_qE.split(_ROWS_AT_ONCE)
            keys_qk[unsure_q] = torch.cat([_search_exhaustively(p, gallery.exact, k, block) for p in parts])
    return keys_qk


def _short_list(query_qE: Tensor, gallery_GE: Tensor, width: int, block: int) -> tuple[Tensor, Tensor]:
    """Highest `width` rough scores and their places, in no order."""
    rough, places = [], []
    for start in range(0, len(gallery_GE), block):
        scores_qg = query_qE @ gallery_GE[start : start + block].T
        best = scores_qg.topk(min(width, scores_qg.shape[1]), sorted=False)
        rough.append(best.values)
        places.append(best.indices + start)
    if len(rough) == 1:
        return rough[0], places[0]
    best = torch.cat(rough, dim=1).topk(width, sorted=False)
    return best.values, torch.cat(places, dim=1).gather(1, best.indices)


def _highest_left_out(query_qE: Tensor, gallery: _Gallery, lowest_listed_q: Tensor) -> Tensor:
    """Bound on the true score of what the short list leaves out, per query.

    A rough score differs from the true one by the rounding of both features, of the additions (Higham, Accuracy and
    Stability of Numerical Algorithms, section 3.1; both types add in float32) and of the result.
    """
    rough_qE = query_qE.to(gallery.rough.dtype).float()
    moved_q = torch.linalg.vector_norm(query_qE - rough_qE, dim=-1).double()
    length_q = torch.linalg.vector_norm(rough_qE, dim=-1).double()
    adding = (query_qE.shape[1] + 4) * _UNIT[torch.float32]
    error_q = moved_q * gallery.longest + length_q * gallery.farthest
    error_q = error_q + adding * length_q * (gallery.longest + gallery.farthest)
    return lowest_listed_q + 1.01 * (error_q + _UNIT[gallery.rough.dtype] * lowest_listed_q.abs())


def _exact_scores(query_qE: Tensor, gallery_GE: Tensor, places_qW: Tensor) -> Tensor:
    """Scores of the short list; the same order of additions for every place, so equal rows score equally."""
    rows = max(1, _PRODUCTS_AT_ONCE // max(1, places_qW.shape[1] * gallery_GE.shape[1]))
    parts = [
        (query_E.double()[:, None] * gallery_GE[places_W].double()).sum(-1).float()
        for query_E, places_W in zip(query_qE.split(rows), places_qW.split(rows), strict=True)
    ]
    return torch.cat(parts)


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
    ordered = torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits)  # bits of floats below zero count downwards
    return (ordered << 32) + (_LOW_BITS - places)


def _places(keys: Tensor) -> Tensor:
    return _LOW_BITS - (keys & _LOW_BITS)
