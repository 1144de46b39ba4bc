"""Contrastive loss of CLIP (arXiv:2103.00020, figure 3), exact for any number of ranks, with several positives if asked.

Row targets Y are normalised by their sum: with one positive a row this is cross entropy, with several it is the
supervised contrastive loss with the mean outside the logarithm (arXiv:2004.11362, equation 2).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Literal

from cn_clip.config.schema import number
from cn_clip.losses.pair import PairLoss, SharedOptions
from cn_clip.losses.tiles import contrastive_gradients


@dataclass(frozen=True, kw_only=True)
class Options(SharedOptions):
    targets: Literal["diagonal", "positives", "mask"] = "diagonal"
    """Which caption is right for a picture: `diagonal` its own pair only; `positives` every pair with the same picture
    id, text id or caption text; `mask` its own, and those others are left out of the sum of negatives."""
    tile: int = number(4096, at_least=1)
    """Rows and columns of one tile of the logits: bounds memory, changes nothing else."""


def build(options: Options) -> PairLoss:
    return partial(contrastive_gradients, targets=options.targets, tile=options.tile)
