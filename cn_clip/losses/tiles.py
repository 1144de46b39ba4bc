"""The tiled exact engine: both directions of the contrastive loss from one pass over tiles of the logits.

No rank ever holds more than a tile of the N x N logits. A rank holds its own rows of pictures against the captions of
all ranks; one tile S = s·I·Tᵀ feeds the log-sum-exp of its rows and of its columns, the columns are then combined over
ranks, and a second pass forms dLoss/dS tile by tile. Prior art: Inf-CL (arXiv:2410.17243) and the memory-efficient CLIP
loss of DINOv3.

Shapes: R rows of this rank, N columns of all ranks, E embedding; i, j rows and columns of one tile.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from cn_clip.losses.pair import GatherColumns, PairGradients, PairIds


@dataclass
class _Line:
    """What one direction gathers over its tiles, each (R,) for rows or (N,) for columns."""

    lse: Tensor
    """Log of the sum of exponentials."""
    positives: Tensor
    """Number of positives."""
    positive_logits: Tensor
    """Sum of the logits of the positives."""
    best: Tensor
    """Largest logit."""
    hit: Tensor
    """1 where the largest logit is a positive's."""

    @classmethod
    def empty(cls, num: int, like: Tensor) -> _Line:
        lowest = like.new_full((num,), torch.finfo(like.dtype).min)
        zeros = like.new_zeros(num)
        return cls(lowest.clone(), zeros.clone(), zeros.clone(), lowest, zeros)

    def add(self, at: slice, logits: Tensor, match: Tensor, dim: int) -> None:
        """Take in a tile; `dim` is the axis of the tile that is summed away."""
        self.lse[at] = torch.logaddexp(self.lse[at], logits.logsumexp(dim))
        self.positives[at] += match.sum(dim)
        self.positive_logits[at] += logits.masked_fill(~match, 0).sum(dim)
        best, where = logits.max(dim)
        hit = match.gather(dim, where.unsqueeze(dim)).squeeze(dim).to(logits.dtype)
        better = best > self.best[at]
        self.hit[at] = torch.where(better, hit, self.hit[at])
        self.best[at] = torch.where(better, best, self.best[at])

    def stacked(self) -> Tensor:
        return torch.stack([self.lse, self.positives, self.positive_logits, self.best, self.hit])

    @classmethod
    def combined(cls, parts_W5N: Tensor) -> _Line:
        """One line from the lines that W ranks gathered over their own rows."""
        lse, positives, positive_logits, best, hit = parts_W5N.unbind(1)
        first = best.argmax(0, keepdim=True)  # the lowest rank wins a tie, on every rank alike
        return cls(
            lse.logsumexp(0), positives.sum(0), positive_logits.sum(0), best.amax(0), hit.gather(0, first)[0]
        )

    def losses(self) -> Tensor:
        """Cross entropy of each line in nats."""
        return self.lse - self.positive_logits / self.positives


@torch.no_grad()
def contrastive_gradients(
    image_RE: Tensor,
    text_NE: Tensor,
    scale: Tensor,
    row_ids: PairIds,
    column_ids: PairIds,
    gather_columns: GatherColumns,
    *,
    targets: str,
    tile: int,
) -> PairGradients:
    """Loss and derivatives of one rank's rows; see `PairGradients` for what is whole and what is a share.

    With Y the targets, the loss is the mean over rows and columns of `lse - ΣY·S / ΣY`, so
    dLoss/dS = (e^(S - lse_row) + e^(S - lse_col) - Y/ΣY_row - Y/ΣY_col) / 2N.
    """
    row, column = _Line.empty(len(image_RE), image_RE), _Line.empty(len(text_NE), text_NE)
    # an epoch is padded with copies; comparing ids in every tile costs time, so they are looked for once
    has_copies = len(column_ids.pair_ids.unique()) < len(text_NE)
    judge = partial(_judged, rows=row_ids, columns=column_ids, targets=targets, has_copies=has_copies)
    for i, j in _tiles(len(image_RE), len(text_NE), tile):
        logits, match = judge(scale * (image_RE[i] @ text_NE[j].T), i, j)
        row.add(i, logits, match, dim=1)
        column.add(j, logits, match, dim=0)
    column = _Line.combined(gather_columns(column.stacked()))

    num = len(text_NE)
    d_image_RE, d_text_NE, d_scale = (
        torch.zeros_like(image_RE),
        torch.zeros_like(text_NE),
        torch.zeros_like(scale),
    )
    for i, j in _tiles(len(image_RE), len(text_NE), tile):
        cosine = image_RE[i] @ text_NE[j].T
        logits, match = judge(scale * cosine, i, j)
        weight = (1 / row.positives[i, None] + 1 / column.positives[None, j]).masked_fill_(~match, 0)
        d_logits = (logits - row.lse[i, None]).exp_() + (logits - column.lse[None, j]).exp_() - weight
        d_logits /= 2 * num
        d_scale += (d_logits * cosine).sum()
        d_logits *= scale
        d_image_RE[i] += d_logits @ text_NE[j]
        d_text_NE[j] += d_logits.T @ image_RE[i]

    share = len(image_RE) / num  # of the columns' mean, which every rank holds whole
    loss = row.losses().sum() / (2 * num) + share * column.losses().mean() / 2
    return PairGradients(loss, d_image_RE, d_text_NE, d_scale, row.hit.sum(), column.hit.sum())


def _tiles(num_rows: int, num_columns: int, tile: int) -> Iterator[tuple[slice, slice]]:
    for top in range(0, num_rows, tile):
        for left in range(0, num_columns, tile):
            yield slice(top, min(top + tile, num_rows)), slice(left, min(left + tile, num_columns))


def _judged(
    logits_ij: Tensor, i: slice, j: slice, *, rows: PairIds, columns: PairIds, targets: str, has_copies: bool
) -> tuple[Tensor, Tensor]:
    """Logits of a tile with what must not count at -inf, and where its positives are."""
    own = rows.positions[i, None] == columns.positions[None, j]
    if targets == "diagonal" and not has_copies:
        return logits_ij, own
    if targets == "diagonal":
        copies = rows.pair_ids[i, None] == columns.pair_ids[None, j]
        return logits_ij.masked_fill(copies & ~own, float("-inf")), own
    same = (
        own
        | (rows.image_ids[i, None] == columns.image_ids[None, j])
        | (rows.text_ids[i, None] == columns.text_ids[None, j])
        | (rows.caption_keys[i, None] == columns.caption_keys[None, j])
    )
    if targets == "positives":
        return logits_ij, same
    return logits_ij.masked_fill(same & ~own, float("-inf")), own
