"""Where the first right answer of every query stands among all candidates, pictures and captions both ways, exactly.

The score of a picture and a caption is the inner product of their features in float64, rounded to float32; equal scores
stand in the order of ids. That is the order of `cn_clip/eval/retrieval/search.py` for feature files in the order of ids,
and it depends on no kernel, batch size or number of ranks. A query's rank is one more than the number of candidates that
stand before its best right one; it is counted, so nothing is sorted and no list of candidates is kept.

Each rank keeps the features it has computed. Blocks of captions are shown to all ranks, which hold their own pictures
against them; one product serves both directions. Beside the features a rank needs one block, one tile of scores, and a few
integers per picture and caption.

Shapes: I pictures, T captions, J joins; n of this rank, b captions of a block, i pictures of a tile, c pairs of a chunk,
E embedding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from cn_clip.metrics.right_pairs import RightPairs

_LOW_BITS = (1 << 32) - 1
_PRODUCTS_AT_ONCE = 1 << 20  # 8 MB of float64


@dataclass(frozen=True)
class Exchange:
    """How ranks tell each other what they hold; for one rank both are the identity."""

    gather: Callable[[Tensor], Tensor]
    """(R, ...) of this rank -> (W·R, ...) of all, in the order of ranks."""
    add_up: Callable[[Tensor], Tensor]
    """Sum over ranks."""
    device: torch.device
    """Where tensors lie that are exchanged; scores are computed there too."""


@dataclass(frozen=True)
class Features:
    """Features that one rank holds, each thing's on one rank only."""

    places_n: Tensor
    """Places of `right_pairs.Distinct`."""
    features_nE: Tensor
    """On any device."""

    def to(self, device: torch.device) -> Features:
        return Features(self.places_n.to(device), self.features_nE.to(device))

    def part(self, rows: slice | Tensor) -> Features:
        return Features(self.places_n[rows], self.features_nE[rows])


@dataclass(frozen=True, kw_only=True)
class Tiling:
    """How much is looked at at once; the result does not depend on it."""

    pictures: int = 512
    """Of one rank."""
    captions: int = 4096
    """Of all ranks together."""


@torch.no_grad()
def ranks_of_first_right(
    pictures: Features,
    captions: Features,
    right: RightPairs,
    exchange: Exchange,
    tiling: Tiling | None = None,
) -> tuple[Tensor, Tensor]:
    """Rank of the first right caption of each picture (I,), and of the first right picture of each caption (T,), from 1.

    Complete on every rank. `pictures` and `captions` are this rank's; scores that are no number count as the lowest.
    """
    tiling = tiling or Tiling()
    right_of_n, right_of_T = _best_right(pictures, captions, right, exchange, tiling)
    ahead_n, ahead_T = torch.zeros_like(right_of_n.places), torch.zeros_like(right_of_T.places)
    for block in _blocks(captions, exchange, tiling):
        right_of_b = right_of_T.part(block.places_n)
        ahead_b = torch.zeros_like(right_of_b.places)
        block_bE = block.features_nE.double()
        for start in range(0, len(pictures.places_n), tiling.pictures):
            rows = slice(start, start + tiling.pictures)
            tile = pictures.part(rows).to(exchange.device)
            scores_ib = _rounded(tile.features_nE.double() @ block_bE.T)
            ahead_n[rows] += right_of_n.part(rows).column().is_behind(scores_ib, block.places_n).sum(1)
            ahead_b += right_of_b.is_behind(scores_ib, tile.places_n[:, None]).sum(0)
        ahead_T[block.places_n] = ahead_b
    ahead_I = ahead_n.new_zeros(len(right.pictures))
    ahead_I[pictures.places_n.to(exchange.device)] = ahead_n
    return exchange.add_up(ahead_I) + 1, exchange.add_up(ahead_T) + 1


@dataclass(frozen=True)
class _Standing:
    """Where answers stand: by their scores, equal ones by their places."""

    scores: Tensor
    places: Tensor

    def part(self, rows: slice | Tensor) -> _Standing:
        return _Standing(self.scores[rows], self.places[rows])

    def column(self) -> _Standing:
        return _Standing(self.scores[:, None], self.places[:, None])

    def is_behind(self, scores: Tensor, places: Tensor) -> Tensor:
        """Whether a candidate of this score and place stands before the answer."""
        return (scores > self.scores) | ((scores == self.scores) & (places < self.places))

    @classmethod
    def of(cls, keys: Tensor) -> _Standing:
        """Read back from `_keys`."""
        scores = _flipped(keys >> 32).to(torch.int32).view(torch.float32)
        return cls(scores, _LOW_BITS - (keys & _LOW_BITS))


def _keys(scores: Tensor, places: Tensor) -> Tensor:
    """Integers, the greater the further to the front: a maximum of them is the best answer."""
    return (_flipped(scores.view(torch.int32).long()) << 32) + (_LOW_BITS - places)


def _flipped(bits: Tensor) -> Tensor:
    """Bits of float32 in the order of the numbers, and back: those of negative ones count downwards."""
    return torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits)


def _rounded(scores: Tensor) -> Tensor:
    """As float32; what is no number is the lowest, and there is one zero."""
    return scores.float().nan_to_num_(nan=-torch.inf, posinf=torch.inf, neginf=-torch.inf).add_(0.0)


def _blocks(captions: Features, exchange: Exchange, tiling: Tiling) -> Iterator[Features]:
    """Captions of all ranks in blocks, the same on every rank."""
    count = torch.tensor([len(captions.places_n)], device=exchange.device)
    counts_W = exchange.gather(count)
    size = max(1, tiling.captions // len(counts_W))
    for start in range(0, int(counts_W.max()), size):
        own = captions.part(slice(start, start + size)).to(exchange.device)
        missing = size - len(own.places_n)
        places = torch.nn.functional.pad(own.places_n, (0, missing), value=-1)
        features = torch.nn.functional.pad(own.features_nE, (0, 0, 0, missing))
        block = Features(exchange.gather(places), exchange.gather(features))
        yield block.part(block.places_n >= 0)


def _best_right(
    pictures: Features, captions: Features, right: RightPairs, exchange: Exchange, tiling: Tiling
) -> tuple[_Standing, _Standing]:
    """Of the best right caption of this rank's pictures (n,), and of the best right picture of all captions (T,)."""
    device, lowest = exchange.device, torch.iinfo(torch.int64).min
    right_of_n = torch.full((len(pictures.places_n),), lowest, device=device)
    right_of_T = torch.full((len(right.captions),), lowest, device=device)
    joins = _own_joins(pictures, right)
    text_T = right.text_T.to(device)
    for block in _blocks(captions, exchange, tiling):
        right_of_b = right_of_T.new_full((len(block.places_n),), lowest)
        for rows_c, columns_c in _right_pairs(joins, text_T[block.places_n], pictures.features_nE.shape[1]):
            own = pictures.part(rows_c.to(pictures.places_n.device)).to(device)
            products_cE = own.features_nE.double() * block.features_nE[columns_c].double()
            scores_c = _rounded(products_cE.sum(-1))
            right_of_n.scatter_reduce_(0, rows_c, _keys(scores_c, block.places_n[columns_c]), "amax")
            right_of_b.scatter_reduce_(0, columns_c, _keys(scores_c, own.places_n), "amax")
        right_of_T[block.places_n] = exchange.gather(right_of_b[None]).amax(0)
    return _Standing.of(right_of_n), _Standing.of(right_of_T)


@dataclass(frozen=True)
class _Joins:
    """Which texts are right for this rank's pictures."""

    rows: Tensor
    texts: Tensor


def _own_joins(pictures: Features, right: RightPairs) -> _Joins:
    row_I = torch.full((len(right.pictures),), -1)
    row_I[pictures.places_n] = torch.arange(len(pictures.places_n))
    rows = row_I[right.joined_picture_J]
    return _Joins(rows[rows >= 0], right.joined_text_J[rows >= 0])


def _right_pairs(joins: _Joins, text_b: Tensor, width: int) -> Iterator[tuple[Tensor, Tensor]]:
    """(row, column) of every right pair of this rank's pictures and a block's captions, in chunks; on `text_b`'s device."""
    device = text_b.device
    sorted_texts, columns = text_b.sort()
    texts = joins.texts.to(device)
    first = torch.searchsorted(sorted_texts, texts)
    num = torch.searchsorted(sorted_texts, texts, right=True) - first
    (found,) = num.nonzero(as_tuple=True)
    rows, first, num = joins.rows.to(device)[found], first[found], num[found]
    ends = num.cumsum(0)
    for start in range(0, int(ends[-1]) if len(ends) else 0, step := max(1, _PRODUCTS_AT_ONCE // width)):
        pair_c = torch.arange(start, min(start + step, int(ends[-1])), device=device)
        join_c = torch.searchsorted(ends, pair_c, right=True)
        offset_c = pair_c - (ends - num)[join_c]
        yield rows[join_c], columns[first[join_c] + offset_c]
