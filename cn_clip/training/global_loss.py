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

from cn_clip.data.batches import PairBatch
from cn_clip.losses.distillation import similarity_gradients
from cn_clip.losses.pair import PairGradients, PairIds, PairLoss
from cn_clip.parallel.gather import any_rank, gather_rows, sum_over_ranks, sum_rows_to_owner
from cn_clip.parallel.ranks import Ranks
from cn_clip.training.distillation import taught_by
from cn_clip.training.out_of_memory import MicroBatchTooLargeError
from cn_clip.training.teachers import Taught

OUT_OF_MEMORY = 1 << 40
"""Notice of a rank that ran out of memory; lower bits are the caller's."""


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
class Gathered:
    """Who is in the global batch."""

    row_ids: PairIds
    """Of this rank's R pairs."""
    column_ids: PairIds
    """Of all M captions: rank by rank the pairs' own, then their hard negatives."""
    notices: int
    """Bits that any rank raised."""


def gather_ids(
    batches: Sequence[PairBatch], ranks: Ranks, *, gather: bool, notices: int = 0, is_short: bool = False
) -> Gathered:
    """Ids of all ranks in one collective, which carries `notices` along.

    Raises MicroBatchTooLargeError on every rank where one of them `is_short` of memory.
    """
    notices |= OUT_OF_MEMORY if is_short else 0
    rows_5R = _row_ids(batches)
    columns_5T = torch.cat([rows_5R, *_negative_ids(batches)], dim=1)
    if gather and ranks.world_size > 1:
        raised_1T = torch.full_like(columns_5T[:1], notices)
        all_6M = gather_rows(torch.cat([columns_5T, raised_1T]).T.contiguous(), ranks).T
        columns_5T = all_6M[:5]
        notices = _any_bit(all_6M[5, :: len(raised_1T[0])].tolist())
    elif ranks.world_size > 1:
        bits = [1 << number for number in range(41)]
        raised = any_rank([bool(notices & bit) for bit in bits], ranks)
        notices = sum(bit for bit, is_raised in zip(bits, raised, strict=True) if is_raised)
    if notices & OUT_OF_MEMORY:
        raise MicroBatchTooLargeError
    return Gathered(PairIds(*rows_5R), PairIds(*columns_5T.contiguous()), notices)


def _any_bit(numbers: Sequence[int]) -> int:
    found = 0
    for number in numbers:
        found |= number
    return found


def _row_ids(batches: Sequence[PairBatch]) -> Tensor:
    """(5, R) in the order of PairIds' fields."""
    return torch.cat(
        [
            torch.stack([b.positions_B, b.pair_ids_B, b.image_ids_B, b.text_ids_B, b.caption_keys_B])
            for b in batches
        ],
        dim=1,
    )


def _negative_ids(batches: Sequence[PairBatch]) -> list[Tensor]:
    """(5, m·k) of each micro-batch with hard negatives: captions without a picture or a place."""
    found = []
    for batch in batches:
        if batch.negatives is not None:
            keys = batch.negatives.keys_K
            none = torch.full_like(keys, -1)
            # a filler has no id at all, so it counts nowhere
            pair_ids = torch.where(batch.negatives.is_filler_K, none, none - 1)
            found.append(torch.stack([none, pair_ids, none - 1, none - 1, keys]))
    return found


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
    image_RE = torch.cat([f.image.detach().float() for f in features])
    text_TE = _captions_then_negatives(features)
    scale = features[-1].scale.detach().float().reshape(())
    bias = features[-1].bias
    found = pair_loss(
        image_RE,
        gather_rows(text_TE, ranks) if gather else text_TE,
        scale,
        gathered.row_ids,
        gathered.column_ids,
        lambda columns_kN: gather_rows(columns_kN[None], ranks) if gather else columns_kN[None],
        bias=None if bias is None else bias.detach().float().reshape(()),
        diagnose=diagnose,
    )
    if features[0].taught is not None:
        found = _with_teacher(found, features, gathered, text_TE, scale, ranks, gather, weight=teacher_weight)
    shares = _shares(found, len(image_RE), ranks, gather)
    if diagnose:
        shares |= _diagnosed(found, image_RE, text_TE[: len(image_RE)], ranks, gather)
    own = [f.own_loss.detach() for f in features if f.own_loss is not None]
    if own:
        shares["loss"] = shares["loss"] + torch.stack(own).sum()
    # in one collective
    sums = sum_over_ranks(torch.stack([share.float() for share in shares.values()]), ranks)
    whole = dict(zip(shares, sums, strict=True))
    return GlobalLoss(
        image_RE=found.image_RE if gather else found.image_RE / ranks.world_size,
        text_TE=sum_rows_to_owner(found.text_ME, ranks) if gather else found.text_ME / ranks.world_size,
        **{name: whole.pop(name) for name in ("loss", "scale", "bias", "image_accuracy", "text_accuracy")},
        notices=gathered.notices,
        numbers=whole,
        suspects=found.diagnostics.suspects() if found.diagnostics is not None else (),
    )


def _with_teacher(
    found: PairGradients,
    features: Sequence[Features],
    gathered: Gathered,
    text_TE: Tensor,
    scale: Tensor,
    ranks: Ranks,
    gather: bool,
    *,
    weight: float,
) -> PairGradients:
    """With `weight` times the cross entropy to a teacher's similarities added."""
    taught = taught_by([f.taught for f in features if f.taught is not None])
    assert taught.text_BF is not None and taught.scale is not None  # open_distillation refuses such teachers
    image_RE = torch.cat([f.image.detach().float() for f in features])
    text_RE = text_TE[: len(image_RE)]
    learnt = similarity_gradients(
        image_RE,
        gather_rows(text_RE, ranks) if gather else text_RE,
        scale,
        taught.image_BF,
        gather_rows(taught.text_BF, ranks) if gather else taught.text_BF,
        taught.scale,
        lambda columns_kN: gather_rows(columns_kN[None], ranks) if gather else columns_kN[None],
    )
    text_ME = found.text_ME.clone()
    text_ME[gathered.column_ids.positions >= 0] += weight * learnt.text_ME
    return replace(
        found,
        loss=found.loss + weight * learnt.loss,
        image_RE=found.image_RE + weight * learnt.image_RE,
        text_ME=text_ME,
        scale=found.scale + weight * learnt.scale,
    )


def _shares(found: PairGradients, num_rows: int, ranks: Ranks, gather: bool) -> dict[str, Tensor]:
    """What the sum over ranks makes whole; inside each rank alone, the mean over ranks of what each finds."""
    num_ranks = ranks.world_size
    of_mean = {
        "loss": found.loss,
        "scale": found.scale,
        "bias": torch.zeros_like(found.loss) if found.bias is None else found.bias,
    }
    if not gather:
        of_mean = {name: value / num_ranks for name, value in of_mean.items()}
    # every rank knows all columns' hits where columns are gathered
    text_hits = found.text_hits / num_ranks if gather else found.text_hits
    return of_mean | {
        "image_accuracy": found.image_hits / (num_rows * num_ranks),
        "text_accuracy": text_hits / (num_rows * num_ranks),
    }


def _diagnosed(
    found: PairGradients, image_RE: Tensor, text_RE: Tensor, ranks: Ranks, gather: bool
) -> dict[str, Tensor]:
    """This rank's shares of what the loss sees of the batch."""
    numbers = {}
    if found.diagnostics is not None:
        seen = found.diagnostics.effective_negatives
        numbers["effective_negatives"] = seen if gather else seen / ranks.world_size
    # arXiv:2203.02053: between the centres of the two clouds of features
    gaps_WE = gather_rows((image_RE.mean(0) - text_RE.mean(0))[None], ranks)
    numbers["modality_gap"] = gaps_WE.mean(0).norm() / ranks.world_size
    return numbers


def _captions_then_negatives(features: Sequence[Features]) -> Tensor:
    """(T, E) of this rank: the captions of all micro-batches, then all their hard negatives."""
    own = [f.text.detach().float()[: len(f.image)] for f in features]
    negatives = [f.text.detach().float()[len(f.image) :] for f in features]
    return torch.cat([*own, *negatives])
