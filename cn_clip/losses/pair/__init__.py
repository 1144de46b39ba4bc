"""Losses of image-text pairs: `loss.type` is the name of a module here.

Contract of a module: a frozen dataclass `Options` that extends `SharedOptions`, and `build(options) -> PairLoss`.

Shapes: R rows of this rank (pictures), N pairs of all ranks, M >= N columns of all ranks (captions), E embedding,
K suspects.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol

from torch import Tensor

GatherColumns = Callable[[Tensor], Tensor]
"""(k, N) of this rank -> (W, k, N) of all ranks: how a loss combines what each rank saw of every column."""

Targets = Literal["diagonal", "positives", "mask"]
"""Which captions are right for a picture. `diagonal`: its own alone. `positives`: those of every pair with the same picture
id, text id or caption text. `mask`: its own, and those others count neither as right nor as wrong."""


@dataclass(frozen=True, kw_only=True)
class SharedOptions:
    gather: bool = True
    """Compare with the captions and pictures of all ranks; false compares inside each rank only."""
    gradient: Literal["exact", "reference"] = "exact"
    """`exact` is the gradient of the mean loss over the global batch; `reference` leaves 1/(number of ranks) of it on the
    towers, as cn-clip does without --gather-with-grad."""


@dataclass(frozen=True)
class PairIds:
    """What tells which caption belongs to which picture, each (B,) int64.

    A column whose position is -1 is a hard negative: a caption without a picture, wrong for every picture, of which only
    `caption_keys` is read. One whose pair id is -1 too is filler and counts nowhere.
    """

    positions: Tensor
    """Of the pair in the order of the epoch: equal only for the pair itself."""
    pair_ids: Tensor
    """Equal for copies of one pair too, which are never each other's negatives."""
    image_ids: Tensor
    text_ids: Tensor
    caption_keys: Tensor
    """Hash of the caption's text: equal texts under different ids have equal keys."""

    def at(self, places: Tensor) -> PairIds:
        """Those at these places."""
        return PairIds(*(ids[places] for ids in vars(self).values()))


@dataclass(frozen=True)
class Diagnostics:
    """What a loss sees of the batch: how many captions a picture is really told from, and which may be right after all."""

    effective_negatives: Tensor
    """() this rank's share: the sum over ranks is the mean over all N rows of exp(entropy) of the weights with which the
    row's wrong captions push: their softmax, or their share of the sigmoids. 0 for a row without a wrong caption."""
    right: PairIds
    """(K,) of the pairs of this rank whose best wrong caption comes nearest to the right one or beats it, worst first;
    K = min(8, R)."""
    wrong: PairIds
    """(K,) of those wrong captions; all -1 where a picture has none."""
    margins_K: Tensor
    """Cosine of the wrong caption minus that of the right one; above 0 the wrong one wins, -inf where there is none."""

    def suspects(self) -> list[dict[str, float]]:
        """One line for each suspected false negative, worst first, ids as they are in the data (below 0: a hard negative)."""
        names = ("pair_id", "image_id", "text_id")
        columns = {
            **dict(zip(names, _numbers(self.right), strict=True)),
            **dict(zip((f"other_{name}" for name in names), _numbers(self.wrong), strict=True)),
            "margin": self.margins_K.tolist(),
        }
        lines = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
        return [line for line in lines if line["margin"] > float("-inf")]


def _numbers(ids: PairIds) -> tuple[list[int], list[int], list[int]]:
    return ids.pair_ids.tolist(), ids.image_ids.tolist(), ids.text_ids.tolist()


@dataclass(frozen=True)
class PairGradients:
    """A loss and its derivatives, in fp32 (fp64 for features in fp64)."""

    loss: Tensor
    """() this rank's share of the mean loss: the sum over ranks is the loss of the global batch, in nats."""
    image_RE: Tensor
    """dLoss/dfeatures of this rank's pictures, complete."""
    text_ME: Tensor
    """dLoss/dfeatures of all captions, this rank's share: the sum over ranks is complete. 0 for filler."""
    scale: Tensor
    """dLoss/dscale, this rank's share, in the shape of `scale`."""
    image_hits: Tensor
    """() how many of this rank's pictures find a right caption first."""
    text_hits: Tensor
    """() how many of the N captions with a picture find a right picture first, on every rank the same."""
    bias: Tensor | None = None
    """dLoss/dbias, this rank's share, in the shape of `bias`; None where no bias was given."""
    diagnostics: Diagnostics | None = None
    """Of this rank's rows, where they were asked for."""


class PairLoss(Protocol):
    def __call__(
        self,
        image_RE: Tensor,
        text_ME: Tensor,
        scale: Tensor,
        row_ids: PairIds,
        column_ids: PairIds,
        gather_columns: GatherColumns,
        *,
        bias: Tensor | None = None,
        diagnose: bool = False,
    ) -> PairGradients:
        """Loss and derivatives for unit features; `scale` is the factor of the cosine, not its logarithm.

        The N columns with a position are the captions of all rows of all ranks, in the same order on every rank. All ranks
        call it together, and `gather_columns` once. Nothing carries an autograd graph.
        """
        ...
