"""What the wrong captions of a batch do, followed tile by tile beside the loss.

Shapes: R rows of this rank, M columns, E embedding; i, j rows and columns of one tile.
"""

from __future__ import annotations

import torch
from torch import Tensor

from cn_clip.losses.matches import Cells, Matches
from cn_clip.losses.pair import Diagnostics, PairIds
from cn_clip.losses.tiles import Tile, Tiles

NUM_SUSPECTS = 8


class Watch:
    """Follows how each row's wrong captions share what pushes its picture away."""

    def __init__(self, tiles: Tiles) -> None:
        self._tiles = tiles
        zeros = tiles.image_RE.new_zeros(len(tiles.image_RE))
        self._weight, self._entropy, self._best = zeros.clone(), zeros.clone(), zeros
        self._where = torch.zeros_like(zeros, dtype=torch.long)

    def add(self, tile: Tile, weights_ij: Tensor, cells: Cells) -> None:
        """Take in how hard each caption of a tile pushes, 0 to 1; `weights_ij` is used up."""
        i = tile.i
        cells.clear_right(weights_ij)
        best, where = weights_ij.max(1)
        better = best > self._best[i]
        self._best[i] = torch.where(better, best, self._best[i])
        self._where[i] = torch.where(better, where + tile.j.start, self._where[i])
        self._weight[i] += weights_ij.sum(1)
        self._entropy[i] += torch.special.entr(weights_ij, out=weights_ij).sum(1)

    def report(self, matches: Matches) -> Diagnostics:
        """Of all rows, once every tile was taken in."""
        margins_R = self._margins(matches)
        worst = margins_R.topk(min(NUM_SUSPECTS, len(margins_R)))
        wrong = matches.columns.at(self._where[worst.indices])
        is_none = worst.values.isneginf()
        return Diagnostics(
            effective_negatives=self._effective().sum() / matches.num_paired,
            right=matches.rows.at(worst.indices),
            wrong=PairIds(*(ids.masked_fill(is_none, -1) for ids in vars(wrong).values())),
            margins_K=worst.values,
        )

    def _effective(self) -> Tensor:
        """(R,) exp(entropy): with q = w/Σw the entropy is log Σw - Σ(w log w)/Σw."""
        has_any = self._weight > 0
        weight = torch.where(has_any, self._weight, 1)
        return torch.where(has_any, weight * (self._entropy / weight).exp(), 0)

    def _margins(self, matches: Matches) -> Tensor:
        image_RE, text_ME = self._tiles.image_RE, self._tiles.text_ME
        margins = [
            (image_RE[i] * (text_ME[self._where[i]] - text_ME[matches.own_R[i]])).sum(1)
            for i in self._tiles.row_blocks
        ]
        return torch.cat(margins).masked_fill_(self._best == 0, float("-inf"))
