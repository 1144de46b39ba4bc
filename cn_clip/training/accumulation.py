"""Exact gradient accumulation: the loss of the global batch once, whatever it is cut into (GradCache, arXiv:2101.06983).

All micro-batches are encoded without gradient, the loss of the gathered features gives dLoss/dfeatures, and each
micro-batch is encoded again to backpropagate <features, dLoss/dfeatures>. The last micro-batch keeps its graph from the
first pass, so the overhead is (A - 1)/A of a forward pass, not one whole. Parameter gradients meet once a step.

Letters: A micro-batches of this rank, m pairs of each, R = A·m, W ranks, N = W·R, E embedding. With k hard negatives a
pair, a micro-batch has T = m·(1 + k) captions: those of its pairs, then the wrong ones.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from cn_clip.parallel.engines import Engine
from cn_clip.parallel.gather import any_rank
from cn_clip.parallel.wrap import batch_statistics_only
from cn_clip.training.global_loss import Features, GlobalLoss
from cn_clip.training.out_of_memory import MicroBatchTooLargeError, is_out_of_memory

Encode = Callable[[int], Features]
"""Number of a micro-batch -> its features; twice the same number meets the same dropout and masks."""
LossOf = Callable[[Sequence[Features] | None], GlobalLoss]
"""Features of this rank's micro-batches -> the loss of all; None: this rank ran out of memory, and tells the others.

Raises MicroBatchTooLargeError on every rank where one of them did.
"""


@dataclass(frozen=True, kw_only=True)
class Accumulation:
    """How one rank turns its micro-batches into gradients."""

    engine: Engine[Any]  # Any: only `nn.Module` is asked of the model, and Generic is invariant
    sizes: Sequence[int]
    """Pairs of each micro-batch."""
    tower_share: float = 1.0
    """Scales the gradients of the towers but not of the logit scale (1: exact)."""
    survives_shortage: bool = True
    """Running out of memory becomes MicroBatchTooLargeError on every rank."""

    def run(self, encode: Encode, loss_of: LossOf) -> GlobalLoss:
        """Add the gradients of the mean loss over the global batch to the parameters; features may lack gradients."""
        if self.engine.ranks.world_size == 1 and self.survives_shortage:
            return self._alone(encode, loss_of)
        return self._one(encode, loss_of) if len(self.sizes) == 1 else self._many(encode, loss_of)

    def rehearse(self, encode: Encode) -> None:
        """Forward and backward of micro-batch 0 for their memory alone: adds zeros to the gradients.

        Raises MicroBatchTooLargeError on every rank where one of them ran out of memory.
        """

        def work() -> bool:
            features = encode(0)
            surrogate = _inner(features.image, torch.zeros_like(features.image))
            surrogate = (
                surrogate + _inner(features.text, torch.zeros_like(features.text)) + 0 * features.scale
            )
            if surrogate.requires_grad:
                self.engine.backward(surrogate)
            return True

        if any_rank([self._tried(work) is None], self.engine.ranks)[0]:
            raise MicroBatchTooLargeError

    def _alone(self, encode: Encode, loss_of: LossOf) -> GlobalLoss:
        """One process has nobody to tell: whatever it was doing, it can begin again."""
        try:
            return self._one(encode, loss_of) if len(self.sizes) == 1 else self._many(encode, loss_of)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
        raise MicroBatchTooLargeError  # outside `except`: the error's traceback would hold the tensors

    def _one(self, encode: Encode, loss_of: LossOf) -> GlobalLoss:
        features = self._tried(lambda: [encode(0)])
        loss = loss_of(features)
        assert features is not None  # else `loss_of` has raised
        self._backward(features[0], 0, loss, with_scale=True)
        return loss

    def _many(self, encode: Encode, loss_of: LossOf) -> GlobalLoss:
        last = len(self.sizes) - 1
        with self.engine.without_sync():
            features = self._tried(lambda: self._first_pass(encode, last))
            loss = loss_of(features)
            assert features is not None
            # The kept graph first, still without synchronising: DDP arms its reducer in the forward pass that ran last,
            # so only a batch that is encoded outside this context may carry the gradients of all.
            done = self._tried(lambda: self._local_passes(encode, features, loss))
            if self._shares_shortage and any_rank([done is None], self.engine.ranks)[0]:
                raise MicroBatchTooLargeError
        self._backward(encode(last - 1), last - 1, loss, with_scale=True)
        return loss

    def _first_pass(self, encode: Encode, last: int) -> list[Features]:
        with torch.no_grad(), batch_statistics_only(self.engine.module):
            cached = [encode(number) for number in range(last)]
        return [*cached, encode(last)]

    def _local_passes(self, encode: Encode, features: list[Features], loss: GlobalLoss) -> bool:
        last = len(features) - 1
        self._backward(features[last], last, loss, with_scale=False)
        features.pop()  # its graph goes before the next one comes
        for number in range(last - 1):
            self._backward(encode(number), number, loss, with_scale=False)
        return True

    @property
    def _shares_shortage(self) -> bool:
        return self.survives_shortage and self.engine.ranks.world_size > 1

    def _tried(self, work: Callable[[], Any]) -> Any:  # Any: whatever the work returns
        """What `work` returns, or None where memory ran out and the other ranks must be told first."""
        if not self._shares_shortage:
            return work()
        try:
            return work()
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
        return None

    def _backward(self, features: Features, number: int, loss: GlobalLoss, *, with_scale: bool) -> None:
        start = sum(self.sizes[:number])
        gradients = loss.rows(start, start + self.sizes[number])
        surrogate = _inner(features.image, gradients.image) + _inner(features.text, gradients.text)
        surrogate = surrogate * self.tower_share
        # Each rank knows the whole gradient of what all pairs share: it adds 1/W of it, once, where the gradients meet.
        share = 1 / self.engine.ranks.world_size if with_scale else 0.0
        surrogate = surrogate + features.scale * (loss.scale * share)
        if features.bias is not None:
            surrogate = surrogate + features.bias * (loss.bias * share)
        if features.own_loss is not None:
            surrogate = surrogate + features.own_loss
        if surrogate.requires_grad:  # a frozen tower with a frozen scale has nothing to learn from
            self.engine.backward(surrogate)


def _inner(features_mE: Tensor, gradients_mE: Tensor) -> Tensor:
    return (features_mE.float() * gradients_mE).sum()
