"""What is gathered along the rows and columns of the logits, tile by tile: log-sum-exp, and what is found first.

Shapes: i, j rows and columns of one tile. `at` is where a tile's lines stand among all; `dim` is the axis that is summed
away: 1 for rows, 0 for columns.
"""

from __future__ import annotations

import torch
from torch import Tensor

from cn_clip.losses.matches import Cells


class LogSum:
    """Log of the sum of exponentials of each line, stable for logits of any size and for lines where nothing counts."""

    def __init__(self, num: int, like: Tensor) -> None:
        self._largest = like.new_full((num,), torch.finfo(like.dtype).min)
        self._total = like.new_zeros(num)

    def add(self, at: slice, logits_ij: Tensor, spare_ij: Tensor, dim: int) -> None:
        before = self._largest[at]
        # finite even where every logit is -inf, so that the difference below never is -inf - -inf
        largest = torch.maximum(before, logits_ij.amax(dim))
        torch.sub(logits_ij, largest.unsqueeze(dim), out=spare_ij).exp_()
        self._total[at] = self._total[at] * (before - largest).exp_() + spare_ij.sum(dim)
        self._largest[at] = largest

    def value(self) -> Tensor:
        """-inf where nothing counts."""
        return self._largest + self._total.log()


class Best:
    """The largest logit of each line, the first of equal ones, and whether it is right."""

    def __init__(self, num: int, like: Tensor) -> None:
        self.best = like.new_full((num,), torch.finfo(like.dtype).min)
        self.hit = like.new_zeros(num)
        """1 where it is right, else 0."""

    def add(self, at: slice, logits_ij: Tensor, cells: Cells, dim: int) -> None:
        if cells.has_right:
            best, where = logits_ij.max(dim)
            hit = cells.is_right(where, dim).to(self.hit.dtype)
        else:  # finding the place takes much longer than finding the value
            best = logits_ij.amax(dim)
            hit = torch.zeros_like(best)
        better = best > self.best[at]
        self.hit[at] = torch.where(better, hit, self.hit[at])
        self.best[at] = torch.where(better, best, self.best[at])


def joined_hits(best_WN: Tensor, hit_WN: Tensor) -> Tensor:
    """(N,) hits of columns from what each of W ranks found in its own rows; the lowest rank wins a tie, on all alike."""
    return hit_WN.gather(0, best_WN.argmax(0, keepdim=True))[0]
