"""Sigmoid loss of SigLIP (arXiv:2303.15343): every cell of the logits is a yes or no of its own.

With z = 1 for right captions and -1 for wrong ones, the loss is the mean over pictures of the sum over captions of
`softplus(-z (s·cos + b))`. One pass over the tiles gives it with its derivatives, and no rank waits for another's sums.

Shapes: R rows of this rank, N pairs of all, M >= N columns, E embedding; i, j rows and columns of one tile.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from cn_clip.config.schema import number
from cn_clip.losses.diagnostics import Watch
from cn_clip.losses.lines import Best, joined_hits
from cn_clip.losses.matches import Matches
from cn_clip.losses.pair import GatherColumns, PairGradients, PairIds, PairLoss, SharedOptions, Targets
from cn_clip.losses.tiles import DEFAULT_TILE, Tiles, plain_arithmetic


@dataclass(frozen=True, kw_only=True)
class Options(SharedOptions):
    targets: Targets = "diagonal"
    """Which caption is right for a picture: `diagonal` its own pair only; `positives` every pair with the same picture
    id, text id or caption text; `mask` its own, and those others count neither as right nor as wrong."""
    # the trainer holds the scale between 1 and 100
    initial_scale: float = number(10.0, at_least=1, at_most=100)
    """Factor of the cosine that a fresh model starts with (section 3.2; the parameter is its logarithm)."""
    initial_bias: float = -10.0
    """Bias that a model without one starts with: nearly every pair of a batch is a wrong one (section 3.2)."""
    tile: int = number(DEFAULT_TILE, at_least=1)
    """Rows and columns of one tile of the logits: bounds memory, changes nothing else."""


def build(options: Options) -> PairLoss:
    return partial(sigmoid_gradients, targets=options.targets, tile=options.tile)


def sigmoid_gradients(
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
    tile: int = DEFAULT_TILE,
) -> PairGradients:
    """Loss and derivatives of one rank's rows; see `PairLoss`. Without a bias, b is 0."""
    with plain_arithmetic(image_RE.device):
        matches = Matches(row_ids, column_ids, targets, tile)
        num = matches.num_paired
        kept_ME = text_ME if matches.order_M is None else text_ME[matches.order_M]
        tiles = Tiles(image_RE, kept_ME, scale, tile, num_paired=num, bias=bias)
        rows, columns = Best(len(image_RE), tiles.image_RE), Best(num, tiles.image_RE)
        watch = Watch(tiles) if diagnose else None
        loss, d_bias = _run(tiles, matches, rows, columns, watch)
        best_WN, hit_WN = gather_columns(torch.stack([columns.best, columns.hit])).unbind(1)
        d_image_RE, d_kept_ME, d_scale = tiles.gradients(1 / num)
        return PairGradients(
            loss=loss / num,
            image_RE=d_image_RE,
            text_ME=matches.as_given(d_kept_ME, len(text_ME)),
            scale=d_scale,
            image_hits=rows.hit.sum(),
            text_hits=joined_hits(best_WN, hit_WN).sum(),
            bias=None if bias is None else (d_bias / num).reshape(bias.shape),
            diagnostics=None if watch is None else watch.report(matches),
        )


def _run(
    tiles: Tiles, matches: Matches, rows: Best, columns: Best, watch: Watch | None
) -> tuple[Tensor, Tensor]:
    """Sums of the loss and of dLoss/dS over all tiles."""
    loss, d_bias = tiles.image_RE.new_zeros(2)
    for tile in tiles.walk():
        logits, spare, cells = tile.logits, tile.spare, matches.cells(tile.i, tile.j)
        cells.leave_out(logits)
        rows.add(tile.i, logits, cells, dim=1)
        if cells.is_paired:
            columns.add(tile.j, logits, cells, dim=0)
        if watch is not None:
            watch.add(tile, torch.sigmoid(logits, out=spare), cells)
        cells.turn_right(logits)  # -z·S, whose softplus is the loss
        loss += _sum_of_softplus(logits, spare)
        logits.sigmoid_()
        cells.turn_right(logits)  # and back: d softplus(-z·S)/dS = -z·sigmoid(-z·S)
        d_bias += logits.sum()
        tiles.back(tile, logits)
    return loss, d_bias


def _sum_of_softplus(values: Tensor, spare: Tensor) -> Tensor:
    """() sum of log(1 + e^x) = max(x, 0) + log(1 + e^-|x|)."""
    positive = torch.clamp(values, min=0, out=spare).sum()
    return positive + _sum_of_log1p(torch.abs(values, out=spare).neg_().exp_())


def _sum_of_log1p(values: Tensor) -> Tensor:
    """() sum of log(1 + u) for u from 0 to 1; `values` are used up.

    One logarithm for 32 values, as it takes longer than all else: (1 + a)(1 + b) = 1 + (a + b + ab), where nothing is lost
    for small a and b, and 32 factors stay below 2^32.
    """
    flat = values.view(-1)
    for _ in range(5):
        if len(flat) % 2:
            break
        left, right = flat.chunk(2)
        flat = right.addcmul_(left, right).add_(left)
    return flat.log1p().sum()
