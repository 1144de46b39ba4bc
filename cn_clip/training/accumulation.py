"""Exact gradient accumulation: the loss of the global batch once, whatever it is cut into (GradCache, arXiv:2101.06983).

All micro-batches are encoded without gradient, the loss of the gathered features gives dLoss/dfeatures, and each
micro-batch is encoded again to backpropagate <features, dLoss/dfeatures>. The last micro-batch keeps its graph from the
first pass, so the overhead is (A - 1)/A of a forward pass, not one whole. Parameter gradients meet once a step.

Letters: A micro-batches of this rank, m pairs of each, R = A·m, W ranks, N = W·R, E embedding.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from cn_clip.data.batches import PairBatch
from cn_clip.losses.pair import PairGradients, PairIds, PairLoss
from cn_clip.parallel.gather import gather_rows, sum_over_ranks, sum_rows_to_owner
from cn_clip.parallel.precision import Precision
from cn_clip.parallel.ranks import Ranks
from cn_clip.parallel.wrap import ParallelModel, batch_statistics_only


@dataclass(frozen=True)
class Features:
    """What the model says of one micro-batch: unit features (m, E) and the factor of the cosine ()."""

    image: Tensor
    text: Tensor
    scale: Tensor


@dataclass(frozen=True)
class GlobalLoss:
    """Loss of the global batch and its derivatives for this rank's R pairs, complete."""

    loss: Tensor
    image_RE: Tensor
    text_RE: Tensor
    scale: Tensor
    image_accuracy: Tensor
    text_accuracy: Tensor


Encode = Callable[[int], Features]
"""Number of a micro-batch -> its features; twice the same number meets the same dropout and masks."""


def accumulate(
    encode: Encode,
    num_batches: int,
    loss_of: Callable[[Sequence[Features]], GlobalLoss],
    model: ParallelModel[Any],  # Any: only `nn.Module` is asked of it, and Generic is invariant
    precision: Precision,
    tower_share: float = 1.0,
) -> GlobalLoss:
    """Add the gradients of the mean loss over the global batch to the parameters; features may lack gradients.

    `tower_share` scales the gradients of the towers but not of the logit scale (1: exact).
    """
    world_size = model.ranks.world_size

    def backward(features: Features, number: int, loss: GlobalLoss, with_scale: bool) -> None:
        rows = slice(number * len(features.image), (number + 1) * len(features.image))
        surrogate = _inner(features.image, loss.image_RE[rows]) + _inner(features.text, loss.text_RE[rows])
        surrogate = surrogate * tower_share
        # Each rank knows the scale's whole gradient: it adds 1/W of it, once, where the gradients meet.
        surrogate = surrogate + features.scale * (loss.scale / world_size if with_scale else 0.0)
        if surrogate.requires_grad:  # a frozen tower with a frozen scale has nothing to learn from
            # The engine averages over W; the loss asks for the sum.
            precision.backward(world_size * surrogate)

    if num_batches == 1:
        features = encode(0)
        loss = loss_of([features])
        backward(features, 0, loss, with_scale=True)
        return loss

    last = num_batches - 1
    with model.without_sync():
        with torch.no_grad(), batch_statistics_only(model.module):
            cached = [encode(number) for number in range(last)]
        kept = encode(last)
        loss = loss_of([*cached, kept])
        # The kept graph first, still without synchronising: DDP arms its reducer in the forward pass that ran last,
        # so only a batch that is encoded outside this context may carry the gradients of all.
        backward(kept, last, loss, with_scale=False)
        for number in range(last - 1):
            backward(encode(number), number, loss, with_scale=False)
    backward(encode(last - 1), last - 1, loss, with_scale=True)
    return loss


def _inner(features_mE: Tensor, gradients_mE: Tensor) -> Tensor:
    return (features_mE.float() * gradients_mE).sum()


def global_loss(
    pair_loss: PairLoss,
    features: Sequence[Features],
    batches: Sequence[PairBatch],
    ranks: Ranks,
    *,
    gather: bool,
) -> GlobalLoss:
    """Loss over the pairs of all ranks (`gather`), or the mean over ranks of the loss inside each."""
    image_RE = torch.cat([f.image.detach().float() for f in features])
    text_RE = torch.cat([f.text.detach().float() for f in features])
    scale = features[-1].scale.detach().float()
    row_ids = _ids(batches)
    if not gather:
        own = pair_loss(image_RE, text_RE, scale, row_ids, row_ids, lambda columns_kN: columns_kN[None])
        return _local_mean(own, ranks)
    column_ids = PairIds(*(gather_rows(ids, ranks) for ids in vars(row_ids).values()))
    text_NE = gather_rows(text_RE, ranks)
    found = pair_loss(
        image_RE, text_NE, scale, row_ids, column_ids, lambda columns_kN: gather_rows(columns_kN[None], ranks)
    )
    shares = sum_over_ranks(torch.stack([found.loss, found.scale, found.image_hits]), ranks)
    num_pairs = len(text_NE)
    return GlobalLoss(
        loss=shares[0],
        image_RE=found.image_RE,
        text_RE=sum_rows_to_owner(found.text_NE, ranks),
        scale=shares[1],
        image_accuracy=shares[2] / num_pairs,
        text_accuracy=found.text_hits / num_pairs,
    )


def _local_mean(own: PairGradients, ranks: Ranks) -> GlobalLoss:
    world_size, num_rows = ranks.world_size, len(own.image_RE)
    shares = torch.stack([own.loss, own.scale, own.image_hits / num_rows, own.text_hits / num_rows])
    loss, scale, image_accuracy, text_accuracy = sum_over_ranks(shares, ranks) / world_size
    return GlobalLoss(
        loss, own.image_RE / world_size, own.text_NE / world_size, scale, image_accuracy, text_accuracy
    )


def _ids(batches: Sequence[PairBatch]) -> PairIds:
    return PairIds(
        positions=torch.cat([batch.positions_B for batch in batches]),
        pair_ids=torch.cat([batch.pair_ids_B for batch in batches]),
        image_ids=torch.cat([batch.image_ids_B for batch in batches]),
        text_ids=torch.cat([batch.text_ids_B for batch in batches]),
        caption_keys=torch.cat([batch.caption_keys_B for batch in batches]),
    )
