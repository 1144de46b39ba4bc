"""What is gathered along the rows and columns of the logits, tile by tile: log-sum-exp, and what is found first.

Shapes: i, j rows and columns of one tile. `at` is where a tile's lines stand among all; `dim` is the axis that is summed
away: 1 for rows, 0 for columns.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from cn_clip.losses.matches import Cells


@dataclass(frozen=True)
class ExpSum:
    """Sum of exponentials of each line, as e^largest · total: one rounded logarithm would cost half the digits of a
    softmax of logits near 100."""

    largest: Tensor
    total: Tensor

    def log(self, of: Tensor | None = None) -> Tensor:
        """Log-sum-exp of each line, less the logit `of` where one is given."""
        return self.total.log() + (self.largest if of is None else self.largest - of)

    @classmethod
    def joined(cls, largest_WN: Tensor, total_WN: Tensor) -> ExpSum:
        """Of columns, from the sums of W ranks over their own rows."""
        largest = largest_WN.amax(0)
        return cls(largest, (total_WN * (largest_WN - largest).exp()).sum(0))


class ExpSummer:
    """Gathers `ExpSum`, stable for logits of any size and for lines where nothing counts."""

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

    def sum(self) -> ExpSum:
        return ExpSum(self._largest, self._total)


def add_softmaxes(
    logits_ij: Tensor, spare_ij: Tensor, rows: ExpSum, columns: ExpSum, i: slice, j: slice
) -> None:
    """Turn logits into their softmax along the row plus that along the column, in place.

    `spare_ij` is left with the row's softmax but for a factor of the row.
    """
    torch.sub(logits_ij, rows.largest[i, None], out=spare_ij).exp_()
    logits_ij.sub_(columns.largest[j]).exp_().div_(columns.total[j])
    logits_ij.addcdiv_(spare_ij, rows.total[i, None])


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
