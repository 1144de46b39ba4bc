"""Which cells of the logits are right and which do not count, asked for tile by tile.

Shapes: R rows of this rank, N columns with a picture, M columns that count; i, j rows and columns of one tile.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from cn_clip.losses.pair import PairIds, Targets

NEVER = float("-inf")
"""Logit of a cell that does not count."""


@dataclass(frozen=True)
class Cells:
    """What the cells of one tile mean."""

    is_paired: bool
    """Whether its columns have pictures, that is, whether they are lines of their own."""
    own_i: Tensor | None = None
    """Column inside the tile of each row's own caption, anywhere outside for the rows that have it in another tile; None
    where no row has it here."""
    also_right: Tensor | None = None
    """(i, j) where a caption other than its own is right."""
    left_out: Tensor | None = None
    """(i, j) what does not count."""

    @property
    def has_right(self) -> bool:
        return self.own_i is not None or self.also_right is not None

    def leave_out(self, logits_ij: Tensor) -> None:
        """Set what does not count to -inf, in place."""
        if self.left_out is not None:
            logits_ij.masked_fill_(self.left_out, NEVER)

    def own(self, values_ij: Tensor) -> Tensor:
        """(i,) values of the rows' own cells, 0 for rows that have theirs in another tile."""
        if self.own_i is None:
            return values_ij.new_zeros(len(values_ij))
        place_i1, is_here_i1 = self._places(values_ij)
        return values_ij.gather(1, place_i1).masked_fill_(~is_here_i1, 0)[:, 0]

    def add_own(self, values_ij: Tensor, added_i: Tensor) -> None:
        """Add to the rows' own cells, in place."""
        if self.own_i is not None:
            place_i1, is_here_i1 = self._places(values_ij)
            there_i1 = values_ij.gather(1, place_i1)
            values_ij.scatter_(1, place_i1, torch.where(is_here_i1, there_i1 + added_i[:, None], there_i1))

    def turn_right(self, values_ij: Tensor) -> None:
        """Change the sign of the right cells, in place."""
        self.add_own(values_ij, -2 * self.own(values_ij))
        if self.also_right is not None:
            values_ij.sub_(values_ij * self.also_right, alpha=2)

    def clear_right(self, values_ij: Tensor) -> None:
        """Set the right cells to 0, in place."""
        self.add_own(values_ij, -self.own(values_ij))
        if self.also_right is not None:
            values_ij.masked_fill_(self.also_right, 0)

    def is_right(self, where: Tensor, dim: int) -> Tensor:
        """Whether the cell `where` on each line of the tile is right; `where` counts along `dim`."""
        is_right = torch.zeros_like(where, dtype=torch.bool)
        if self.own_i is not None and dim == 1:
            is_right |= where == self.own_i
        elif self.own_i is not None:
            is_right |= self.own_i[where] == torch.arange(len(where), device=where.device)
        if self.also_right is not None:
            is_right |= self.also_right.gather(dim, where.unsqueeze(dim)).squeeze(dim)
        return is_right

    def _places(self, values_ij: Tensor) -> tuple[Tensor, Tensor]:
        assert self.own_i is not None
        place_i = self.own_i.clamp(0, values_ij.shape[1] - 1)
        return place_i[:, None], (place_i == self.own_i)[:, None]


class Matches:
    """Right and left-out cells of the logits, whose columns stand in an order of their own: with a picture first."""

    def __init__(self, rows: PairIds, columns: PairIds, targets: Targets, tile: int) -> None:
        is_paired, is_filler = columns.positions >= 0, columns.pair_ids == -1
        is_filler = is_filler & ~is_paired
        num, num_paired, num_filler = (
            len(is_paired),
            *torch.stack([is_paired.sum(), is_filler.sum()]).tolist(),
        )
        self.num_paired = num_paired
        self.order_M: Tensor | None = None
        """Where each column that counts stands among those given; None where that is the same place."""
        if num_paired < num:
            order = (~is_paired).int().add_(is_filler).argsort(stable=True)
            self.order_M = order[: num - num_filler]
            columns = columns.at(self.order_M)
        self.rows, self.columns, self._targets = rows, columns, targets
        self.own_R = _places_of(rows.positions, columns.positions[:num_paired])
        """Column of each row's own caption."""
        self._look_for_matches(tile)

    def _look_for_matches(self, tile: int) -> None:
        """Find out once, with one wait for the device, which comparisons have anything to find."""
        rows, columns, num = self.rows, self.columns, self.num_paired
        kinds = ["pair_ids"]
        if self._targets != "diagonal":
            kinds += ["image_ids", "text_ids", "caption_keys"]
        repeated = [_has_copies(getattr(columns, kind)[:num]) for kind in kinds]
        hard = torch.isin(columns.caption_keys[num:], rows.caption_keys).any()
        is_found = (columns.positions[self.own_R] == rows.positions).all()
        own_blocks = self.own_R.split(tile)
        spans = [torch.stack([block.min(), block.max()]) for block in own_blocks]
        flags = torch.stack([is_found, hard, *repeated]).long()
        facts = torch.cat([flags, *spans]).tolist()
        found, has_hard, *has_copies = facts[: len(flags)]
        assert found, "every row's own caption is among the columns"
        lows, highs = facts[len(flags) :: 2], facts[len(flags) + 1 :: 2]
        self._own_spans = {n * tile: span for n, span in enumerate(zip(lows, highs, strict=True))}
        self._kinds = [
            (getattr(rows, kind), getattr(columns, kind))
            for kind, has in zip(kinds, has_copies, strict=True)
            if has
        ]
        self._hard_may_be_right = bool(has_hard) and self._targets != "diagonal"

    def cells(self, i: slice, j: slice) -> Cells:
        """Of the tile of rows `i`, which start a block, and columns `j`, which are all with a picture or all without."""
        rows, columns = self.rows, self.columns
        if j.start >= self.num_paired:
            if not self._hard_may_be_right:
                return Cells(is_paired=False)
            # the right text handed in as a wrong one
            equal = rows.caption_keys[i, None] == columns.caption_keys[None, j]
            return Cells(is_paired=False, left_out=equal)
        low, high = self._own_spans[i.start]
        own_i = self.own_R[i] - j.start if low < j.stop and high >= j.start else None
        others = Cells(is_paired=True, own_i=own_i, also_right=self._others(i, j, own_i))
        if self._targets == "positives":
            return others
        return Cells(is_paired=True, own_i=own_i, left_out=others.also_right)

    def as_given(self, kept_ME: Tensor, num_given: int) -> Tensor:
        """Rows of the columns that count, at the places of the columns as they were given; 0 for the others."""
        if self.order_M is None:
            return kept_ME
        given_ME = kept_ME.new_zeros(num_given, kept_ME.shape[1])
        given_ME[self.order_M] = kept_ME
        return given_ME

    def _others(self, i: slice, j: slice, own_i: Tensor | None) -> Tensor | None:
        """(i, j) where captions other than its own belong to a row's pair."""
        same: Tensor | None = None
        for rows_R, columns_M in self._kinds:
            equal = rows_R[i, None] == columns_M[None, j]
            same = equal if same is None else same.logical_or_(equal)
        if same is not None and own_i is not None:
            own = own_i[:, None] == torch.arange(j.stop - j.start, device=own_i.device)
            same.logical_and_(own.logical_not_())
        return same


def _places_of(wanted_R: Tensor, among_N: Tensor) -> Tensor:
    """(R,) index of each value in `among_N`; of some other one where it is not there."""
    in_order_N, by_N = among_N.sort()
    return by_N[torch.searchsorted(in_order_N, wanted_R).clamp_(max=len(among_N) - 1)]


def _has_copies(values_N: Tensor) -> Tensor:
    in_order_N, _ = values_N.sort()
    return (in_order_N[1:] == in_order_N[:-1]).any()
