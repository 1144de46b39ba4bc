"""Contrastive loss of CLIP (arXiv:2103.00020, figure 3), exact for any number of ranks, with several positives if asked.

Row targets Y are normalised by their sum: with one positive a row this is cross entropy, with several it is the
supervised contrastive loss with the mean outside the logarithm (arXiv:2004.11362, equation 2).

Two passes over the tiles: the first gathers the sums of every row and column, which are then combined over ranks; the
second forms dLoss/dS. With C the number of cells of a line that count and ε the smoothing, the loss is the mean over rows
and columns of `lse - (1 - ε) ΣY·S/ΣY - ε ΣS/C`.

Shapes: R rows of this rank, N pairs of all, M >= N columns, E embedding; i, j rows and columns of one tile.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from cn_clip.config.schema import number
from cn_clip.losses.diagnostics import Watch
from cn_clip.losses.lines import Best, ExpSum, ExpSummer, add_softmaxes, joined_hits
from cn_clip.losses.matches import Cells, Matches
from cn_clip.losses.pair import GatherColumns, PairGradients, PairIds, PairLoss, SharedOptions, Targets
from cn_clip.losses.tiles import DEFAULT_TILE, Tile, Tiles, plain_arithmetic


@dataclass(frozen=True, kw_only=True)
class Options(SharedOptions):
    targets: Targets = "diagonal"
    """Which caption is right for a picture: `diagonal` its own pair only; `positives` every pair with the same picture
    id, text id or caption text; `mask` its own, and those others are left out of the sum of negatives."""
    label_smoothing: float = number(0.0, at_least=0, below=1)
    """Share of each target that is spread evenly over all captions, or pictures, that count."""
    tile: int = number(DEFAULT_TILE, at_least=1)
    """Rows and columns of one tile of the logits: bounds memory, changes nothing else."""


def build(options: Options) -> PairLoss:
    return partial(
        contrastive_gradients,
        targets=options.targets,
        smoothing=options.label_smoothing,
        tile=options.tile,
    )


def contrastive_gradients(
    image_RE: Tensor,
    text_ME: Tensor,
    scale: Tensor,
    row_ids: PairIds,
    column_ids: PairIds,
    gather_columns: GatherColumns,
    *,
    bias: Tensor | None = None,
    diagnose: bool = False,
    targets: Targets = "diagonal",
    smoothing: float = 0.0,
    tile: int = DEFAULT_TILE,
) -> PairGradients:
    """Loss and derivatives of one rank's rows; see `PairLoss`. A softmax does not feel a bias: its derivative is 0."""
    with plain_arithmetic(image_RE.device):
        matches = Matches(row_ids, column_ids, targets, tile)
        num = matches.num_paired
        kept_ME = text_ME if matches.order_M is None else text_ME[matches.order_M]
        tiles = Tiles(image_RE, kept_ME, scale, tile, num_paired=num)
        rows, columns = _sums(tiles, matches, smoothing, gather_columns)
        watch = Watch(tiles) if diagnose else None
        _differentiate(tiles, matches, rows, columns, smoothing, watch)
        d_image_RE, d_kept_ME, d_scale = tiles.gradients(1 / (2 * num))
        # the columns' mean is on every rank whole, so each takes its rows' share of it
        share = len(image_RE) / num
        return PairGradients(
            loss=rows.losses(smoothing).sum() / (2 * num) + share * columns.losses(smoothing).mean() / 2,
            image_RE=d_image_RE,
            text_ME=matches.as_given(d_kept_ME, len(text_ME)),
            scale=d_scale,
            image_hits=rows.hit.sum(),
            text_hits=columns.hit.sum(),
            bias=None if bias is None else torch.zeros_like(bias, dtype=tiles.dtype),
            diagnostics=None if watch is None else watch.report(matches),
        )


@dataclass(frozen=True)
class _Sums:
    """Of every line, each (R,) for rows or (N,) for columns."""

    exp: ExpSum
    right: Tensor
    """Number of right cells."""
    right_logits: Tensor
    """Their sum."""
    counted: Tensor
    """Number of cells that count; 0 without smoothing."""
    logits: Tensor
    """Their sum; 0 without smoothing."""
    hit: Tensor

    def losses(self, smoothing: float) -> Tensor:
        """Cross entropy of each line in nats."""
        losses = self.exp.log(of=self.right_logits / self.right)
        if smoothing:  # (1 - ε) (lse - right) + ε (lse - all), written as a change of the first
            losses = losses + smoothing * (self.right_logits / self.right - self.logits / self.counted)
        return losses

    def joined(self, gather_columns: GatherColumns) -> _Sums:
        """Of the columns, over all ranks' rows."""
        found = (self.exp.largest, self.exp.total, self.hit)
        added = (self.right, self.right_logits, self.counted, self.logits)
        largest, total, hit, *summed = gather_columns(torch.stack([*found, *added])).unbind(1)
        right, right_logits, counted, logits = (part.sum(0) for part in summed)
        exp = ExpSum.joined(largest, total)
        return _Sums(exp, right, right_logits, counted, logits, joined_hits(largest, hit))


class _Line:
    """Gathers `_Sums` of one direction; `dim` is the axis of a tile that is summed away."""

    def __init__(self, num: int, like: Tensor, dim: int) -> None:
        self._dim = dim
        self._exp, self._best = ExpSummer(num, like), Best(num, like)
        self.right, self.right_logits, self._counted, self._logits = like.new_zeros(4, num)

    def add(self, at: slice, tile: Tile, cells: Cells, smoothing: float) -> None:
        dim, logits, spare = self._dim, tile.logits, tile.spare
        self._best.add(at, logits, cells, dim)
        self._exp.add(at, logits, spare, dim)
        if cells.also_right is not None:
            self.right[at] += cells.also_right.sum(dim)
            self.right_logits[at] += torch.mul(logits, cells.also_right, out=spare).sum(dim)
        if smoothing and cells.left_out is not None:
            self._counted[at] += cells.left_out.logical_not().sum(dim)
            self._logits[at] += spare.copy_(logits).masked_fill_(cells.left_out, 0).sum(dim)
        elif smoothing:
            self._counted[at] += logits.shape[dim]
            self._logits[at] += logits.sum(dim)

    def sums(self) -> _Sums:
        return _Sums(
            self._exp.sum(), self.right, self.right_logits, self._counted, self._logits, self._best.hit
        )


def _sums(
    tiles: Tiles, matches: Matches, smoothing: float, gather_columns: GatherColumns
) -> tuple[_Sums, _Sums]:
    """First pass: sums of this rank's rows, and of all columns over all ranks."""
    rows = _Line(len(tiles.image_RE), tiles.image_RE, dim=1)
    columns = _Line(matches.num_paired, tiles.image_RE, dim=0)
    own_logits_R = tiles.image_RE.new_zeros(len(tiles.image_RE))
    for tile in tiles.walk():
        cells = matches.cells(tile.i, tile.j)
        cells.leave_out(tile.logits)
        own_logits_R[tile.i] += cells.own(tile.logits)
        rows.add(tile.i, tile, cells, smoothing)
        if cells.is_paired:
            columns.add(tile.j, tile, cells, smoothing)
    rows.right += 1
    rows.right_logits += own_logits_R
    columns.right[matches.own_R] += 1
    columns.right_logits[matches.own_R] += own_logits_R
    return rows.sums(), columns.sums().joined(gather_columns)


def _differentiate(
    tiles: Tiles, matches: Matches, rows: _Sums, columns: _Sums, smoothing: float, watch: Watch | None
) -> None:
    """Second pass: 2N·dLoss/dS = softmax of the row + of the column - targets of the row - targets of the column."""
    row_target, column_target = (1 - smoothing) / rows.right, (1 - smoothing) / columns.right
    own_target_R = row_target + column_target[matches.own_R]
    for tile in tiles.walk():
        i, j, logits, spare = tile.i, tile.j, tile.logits, tile.spare
        cells = matches.cells(i, j)
        cells.leave_out(logits)
        if cells.is_paired:
            add_softmaxes(logits, spare, rows.exp, columns.exp, i, j)
        else:
            torch.sub(logits, rows.exp.largest[i, None], out=spare).exp_()
            torch.div(spare, rows.exp.total[i, None], out=logits)
        if watch is not None:
            watch.add(tile, spare, cells)
        cells.add_own(logits, -own_target_R[i])
        if cells.also_right is not None:
            logits.sub_(torch.mul(cells.also_right, row_target[i, None], out=spare))
            logits.sub_(torch.mul(cells.also_right, column_target[j], out=spare))
        if smoothing:
            _spread(tile, cells, smoothing, rows, columns)
        tiles.back(tile, logits)


def _spread(tile: Tile, cells: Cells, smoothing: float, rows: _Sums, columns: _Sums) -> None:
    """Take the smoothed part of the targets off dLoss/dS."""
    tile.logits.sub_(smoothing / rows.counted[tile.i, None])
    if cells.is_paired:
        tile.logits.sub_(smoothing / columns.counted[tile.j])
    if cells.left_out is not None:  # nothing else stood there
        tile.logits.masked_fill_(cells.left_out, 0)
