"""Losses of image-text pairs: `loss.type` is the name of a module here.

Contract of a module: a frozen dataclass `Options` that extends `SharedOptions`, and `build(options) -> PairLoss`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol

from torch import Tensor

GatherColumns = Callable[[Tensor], Tensor]
"""(k, N) of this rank -> (W, k, N) of all ranks: how a loss combines what each rank saw of every column."""


@dataclass(frozen=True, kw_only=True)
class SharedOptions:
    gather: bool = True
    """Compare with the captions and pictures of all ranks; false compares inside each rank only."""
    gradient: Literal["exact", "reference"] = "exact"
    """`exact` is the gradient of the mean loss over the global batch; `reference` leaves 1/(number of ranks) of it on the
    towers, as cn-clip does without --gather-with-grad."""


@dataclass(frozen=True)
class PairIds:
    """What tells which caption belongs to which picture, each (B,) int64."""

    positions: Tensor
    """Of the pair in the order of the epoch: equal only for the pair itself."""
    pair_ids: Tensor
    """Equal for copies of one pair too, which are never each other's negatives."""
    image_ids: Tensor
    text_ids: Tensor
    caption_keys: Tensor
    """Hash of the caption's text: equal texts under different ids have equal keys."""


@dataclass(frozen=True)
class PairGradients:
    """A loss and its derivatives. R rows of this rank, N columns of all ranks, E embedding."""

    loss: Tensor
    """() this rank's share of the mean loss: the sum over ranks is the loss of the global batch, in nats."""
    image_RE: Tensor
    """dLoss/dfeatures of this rank's pictures, complete."""
    text_NE: Tensor
    """dLoss/dfeatures of all captions, this rank's share: the sum over ranks is complete."""
    scale: Tensor
    """() dLoss/dscale, this rank's share."""
    image_hits: Tensor
    """() how many of this rank's pictures find their caption first."""
    text_hits: Tensor
    """() how many of all N captions find their picture first, on every rank the same."""


class PairLoss(Protocol):
    def __call__(
        self,
        image_RE: Tensor,
        text_NE: Tensor,
        scale: Tensor,
        row_ids: PairIds,
        column_ids: PairIds,
        gather_columns: GatherColumns,
    ) -> PairGradients:
        """Loss and derivatives for unit features; `scale` is the factor of the cosine, not its logarithm."""
        ...
