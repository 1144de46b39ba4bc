"""The loss of the global batch from the features that each rank has of its own pairs.

Letters as in `accumulation`: R pairs of this rank, N of all, T = R·(1 + k) captions of this rank with k hard negatives a
pair, M = W·T of all, E embedding.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch
from torch import Tensor

from cn_clip.losses.distillation import similarity_gradients
from cn_clip.losses.pair import PairGradients, PairLoss
from cn_clip.parallel.gather import gather_rows, sum_over_ranks, sum_rows_to_owner
from cn_clip.parallel.ranks import Ranks
from cn_clip.training.distillation import taught_by
from cn_clip.training.global_batch import Gathered
from cn_clip.training.teachers import Taught


@dataclass(frozen=True)
class Features:
    """What the model says of one micro-batch."""

    image: Tensor
    """(m, E) unit length."""
    text: Tensor
    """(T, E) unit length: of the pairs' captions, then of their hard negatives."""
    scale: Tensor
    """() factor of the cosine."""
    bias: Tensor | None = None
    """() of the sigmoid loss."""
    own_loss: Tensor | None = None
    """() loss of these pairs alone, as a share of the mean over the global batch."""
    taught: Taught | None = None
    """What a teacher says of the pairs, where its similarities are to be learnt."""


class RowGradients(NamedTuple):
    image: Tensor
    text: Tensor


@dataclass(frozen=True)
class GlobalLoss:
    """Loss of the global batch and its derivatives for this rank's pairs, complete."""

    loss: Tensor
    image_RE: Tensor
    text_TE: Tensor
    """The R captions of the pairs, then their hard negatives."""
    scale: Tensor
    image_accuracy: Tensor
    text_accuracy: Tensor
    bias: Tensor
    """() 0 where the loss has none."""
    notices: int = 0
    """Bits that any rank raised."""
    numbers: Mapping[str, Tensor] = field(default_factory=dict)
    """Diagnostics of the batch, where they were asked for."""
    suspects: Sequence[Mapping[str, float]] = ()
    """Suspected false negatives of this rank, likewise."""

    def rows(self, start: int, stop: int) -> RowGradients:
        """Derivatives of pairs [start, stop) of this rank."""
        num_pairs = len(self.image_RE)
        extra = (len(self.text_TE) - num_pairs) // num_pairs
        own = self.text_TE[start:stop]
        negatives = self.text_TE[num_pairs + start * extra : num_pairs + stop * extra]
        return RowGradients(self.image_RE[start:stop], torch.cat([own, negatives]) if extra else own)


@dataclass(frozen=True)
class _Across:
    """Where a pair is compared: with the pairs of all ranks (`gathers`), or inside each rank alone."""

    ranks: Ranks
    gathers: bool

    def rows(self, own_RX: Tensor) -> Tensor:
        """(N, ...) of all that are compared with, from this rank's (R, ...)."""
        return gather_rows(own_RX, self.ranks) if self.gathers else own_RX

    def columns(self, columns_kN: Tensor) -> Tensor:
        """(W, k, N), or (1, k, N) inside a rank: `losses.pair.GatherColumns`."""
        return self.rows(columns_kN[None])

    def mean(self, value: Tensor) -> Tensor:
        """This rank's share of a number: as it is where the ranks compute it together, else of the mean over ranks."""
        return value if self.gathers else value / self.ranks.world_size


def global_loss(
    pair_loss: PairLoss,
    features: Sequence[Features],
    gathered: Gathered,
    ranks: Ranks,
    *,
    gather: bool,
    diagnose: bool = False,
    teacher_weight: float = 0.0,
) -> GlobalLoss:
    """Loss over the pairs of all ranks (`gather`), or the mean over ranks of the loss inside each."""
    across = _Across(ranks, gather)
    image_RE = torch.cat([f.image.detach().float() for f in features])
    text_TE = _captions_then_negatives(features)
    scale = features[-1].scale.detach().float().reshape(())
    bias = features[-1].bias
    found = pair_loss(
        image_RE,
        across.rows(text_TE),
        scale,
        gathered.row_ids,
        gathered.column_ids,
        across.columns,
        bias=None if bias is None else bias.detach().float().reshape(()),
        diagnose=diagnose,
    )
    text_RE = text_TE[: len(image_RE)]
    taught = [f.taught for f in features if f.taught is not None]
    if taught:
        learnt = _from_teacher(taught_by(taught), image_RE, text_RE, scale, across)
        has_picture_M = gathered.column_ids.positions >= 0
        found = _with_teacher(found, learnt, has_picture_M, weight=teacher_weight)
    shares = _shares(found, len(image_RE), across)
    if diagnose:
        shares |= _diagnosed(found, image_RE, text_RE, across)
    own = [f.own_loss.detach() for f in features if f.own_loss is not None]
    if own:
        shares["loss"] = shares["loss"] + torch.stack(own).sum()
    # in one collective
    sums = sum_over_ranks(torch.stack([share.float() for share in shares.values()]), ranks)
    whole = dict(zip(shares, sums, strict=True))
    return GlobalLoss(
        image_RE=across.mean(found.image_RE),
        text_TE=sum_rows_to_owner(found.text_ME, ranks) if gather else across.mean(found.text_ME),
        **{name: whole.pop(name) for name in ("loss", "scale", "bias", "image_accuracy", "text_accuracy")},
        notices=gathered.notices,
        numbers=whole,
        suspects=found.diagnostics.suspects() if found.diagnostics is not None else (),
    )


def _from_teacher(
    taught: Taught, image_RE: Tensor, text_RE: Tensor, scale: Tensor, across: _Across
) -> PairGradients:
    """Cross entropy to a teacher's similarities, over the captions of the pairs alone."""
    assert taught.text_BF is not None and taught.scale is not None  # open_distillation refuses such teachers
    return similarity_gradients(
        image_RE,
        across.rows(text_RE),
        scale,
        taught.image_BF,
        across.rows(taught.text_BF),
        taught.scale,
        across.columns,
    )


def _with_teacher(
    found: PairGradients, learnt: PairGradients, has_picture_M: Tensor, *, weight: float
) -> PairGradients:
    """With `weight` times what a teacher's similarities add."""
    text_ME = found.text_ME.clone()
    text_ME[has_picture_M] += weight * learnt.text_ME
    return replace(
        found,
        loss=found.loss + weight * learnt.loss,
        image_RE=found.image_RE + weight * learnt.image_RE,
        text_ME=text_ME,
        scale=found.scale + weight * learnt.scale,
    )


def _shares(found: PairGradients, num_rows: int, across: _Across) -> dict[str, Tensor]:
    """What the sum over ranks makes whole; inside each rank alone, the mean over ranks of what each finds."""
    num_ranks = across.ranks.world_size
    # every rank knows all columns' hits where columns are gathered
    text_hits = found.text_hits / num_ranks if across.gathers else found.text_hits
    return {
        "loss": across.mean(found.loss),
        "scale": across.mean(found.scale),
        "bias": across.mean(torch.zeros_like(found.loss) if found.bias is None else found.bias),
        "image_accuracy": found.image_hits / (num_rows * num_ranks),
        "text_accuracy": text_hits / (num_rows * num_ranks),
    }


def _diagnosed(found: PairGradients, image_RE: Tensor, text_RE: Tensor, across: _Across) -> dict[str, Tensor]:
    """This rank's shares of what the loss sees of the batch."""
    numbers = {}
    if found.diagnostics is not None:
        numbers["effective_negatives"] = across.mean(found.diagnostics.effective_negatives)
    # arXiv:2203.02053: between the centres of the two clouds of features
    gaps_WE = gather_rows((image_RE.mean(0) - text_RE.mean(0))[None], across.ranks)
    numbers["modality_gap"] = gaps_WE.mean(0).norm() / across.ranks.world_size
    return numbers


def _captions_then_negatives(features: Sequence[Features]) -> Tensor:
    """(T, E) of this rank: the captions of all micro-batches, then all their hard negatives."""
    own = [f.text.detach().float()[: len(f.image)] for f in features]
    negatives = [f.text.detach().float()[len(f.image) :] for f in features]
    return torch.cat([*own, *negatives])
