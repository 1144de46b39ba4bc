"""The losses in their textbook form, over whole matrices in float64, and a batch with everything in it that can go wrong.

Shapes: N pairs, M captions with hard negatives and filler, E embedding.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from cn_clip.losses.pair import GatherColumns, PairGradients, PairIds, Targets

NUM, EMBED, NUM_COLUMNS = 12, 8, 24
TARGETS: tuple[Targets, ...] = ("diagonal", "positives", "mask")
TEACHER_WIDTH = 5
NONE = -2


def pair_ids() -> PairIds:
    """Chains of "same picture or same caption", so that matching is not transitive, and pair 11 as a copy of pair 4."""
    image_ids = torch.tensor([0, 0, 1, 1, 2, 3, 4, 5, 6, 6, 7, 2])
    text_ids = torch.arange(100, 100 + NUM)
    caption_keys = torch.tensor([0, 1, 1, 2, 3, 3, 4, 5, 6, 7, 7, 3])
    pairs = torch.arange(NUM)
    pairs[11], text_ids[11] = pairs[4], text_ids[4]
    return PairIds(torch.arange(NUM) + 40, pairs, image_ids, text_ids, caption_keys)


def hard_negative_ids() -> PairIds:
    """One a pair: pair 2's is the right text after all, pairs 5 and 8 have filler for theirs."""
    keys = torch.arange(50, 50 + NUM)
    keys[2] = pair_ids().caption_keys[2]
    no_position, none = torch.full((NUM,), -1), torch.full((NUM,), NONE)
    pairs = none.clone()
    pairs[[5, 8]] = -1
    return PairIds(no_position, pairs, none, none, keys)


def joined(parts: Sequence[PairIds]) -> PairIds:
    return PairIds(*(torch.cat(ids) for ids in zip(*(vars(part).values() for part in parts), strict=True)))


@dataclass(frozen=True)
class Batch:
    """Leaves with gradients. Columns are the captions of the pairs, then their hard negatives (if `hard`)."""

    image: Tensor
    text: Tensor
    scale: Tensor
    bias: Tensor
    rows: PairIds
    columns: PairIds

    @classmethod
    def make(cls, *, hard: bool, scale: float = 14.0, seed: int = 0) -> Batch:
        generator = torch.Generator().manual_seed(seed)
        image, text = (
            F.normalize(torch.randn(num, EMBED, dtype=torch.float64, generator=generator), dim=1)
            for num in (NUM, NUM_COLUMNS)
        )
        columns = joined([pair_ids(), hard_negative_ids()]) if hard else pair_ids()
        leaves = (
            image,
            text[: len(columns.positions)],
            torch.tensor(scale).double(),
            torch.tensor(-3.0).double(),
        )
        return cls(*(leaf.clone().requires_grad_() for leaf in leaves), pair_ids(), columns)

    def relations(self, targets: str) -> tuple[Tensor, Tensor]:
        """(N, M) which cells are right, and which count at all."""
        rows, columns = self.rows, self.columns
        is_paired = columns.positions >= 0

        def equal(kind: str) -> Tensor:
            found: Tensor = getattr(rows, kind)[:, None] == getattr(columns, kind)
            return found & (is_paired if kind != "caption_keys" else True)

        own = equal("positions")
        same = equal("pair_ids")
        if targets != "diagonal":
            same = same | equal("image_ids") | equal("text_ids") | equal("caption_keys")
        right = same & is_paired if targets == "positives" else own
        is_filler = ~is_paired & (columns.pair_ids == -1)
        return right, ~is_filler & (right | ~same)


def contrastive(batch: Batch, targets: str, smoothing: float) -> Tensor:
    """Cross entropy with soft targets over the whole matrix; hard negatives stand in the rows only."""
    right, counts = batch.relations(targets)
    logits = (batch.scale * batch.image @ batch.text.T).masked_fill(~counts, float("-inf"))
    num = len(batch.image)

    def one_way(logits: Tensor, right: Tensor, counts: Tensor) -> Tensor:
        wanted = (1 - smoothing) * right.double() / right.sum(1, keepdim=True)
        wanted = wanted + smoothing * counts.double() / counts.sum(1, keepdim=True)
        return -(logits.log_softmax(1).masked_fill(~counts, 0) * wanted).sum(1).mean()

    columns = (each[:, :num].T for each in (logits, right, counts))
    return (one_way(logits, right, counts) + one_way(*columns)) / 2


def sigmoid(batch: Batch, targets: str) -> Tensor:
    right, counts = batch.relations(targets)
    logits = batch.scale * batch.image @ batch.text.T + batch.bias
    signs = torch.where(right, 1.0, -1.0)
    return (F.softplus(-signs * logits) * counts).sum() / len(batch.image)


def teacher() -> tuple[Tensor, Tensor, Tensor]:
    """Unit features of all pairs, narrower than the student's, and a scale."""
    generator = torch.Generator().manual_seed(9)
    image, text = (
        F.normalize(torch.randn(NUM, TEACHER_WIDTH, dtype=torch.float64, generator=generator), dim=1)
        for _ in range(2)
    )
    return image, text, torch.tensor(30.0, dtype=torch.float64)


def similarity(batch: Batch, teacher_image: Tensor, teacher_text: Tensor, teacher_scale: Tensor) -> Tensor:
    logits = batch.scale * batch.image @ batch.text.T
    wanted = teacher_scale * teacher_image @ teacher_text.T
    ways = ((logits, wanted), (logits.T, wanted.T))
    return -sum((q.softmax(1) * p.log_softmax(1)).sum(1).mean() for p, q in ways) / 2  # type: ignore[return-value]


Run = Callable[[int, GatherColumns], PairGradients]
"""Number of a rank and its way to the others -> its share."""


def on_ranks(num_ranks: int, run: Run) -> list[PairGradients]:
    """What each of several ranks returns, each a thread that waits for the others where ranks would."""
    sent: list[Tensor | None] = [None] * num_ranks
    shares: list[PairGradients | None] = [None] * num_ranks
    failures: list[BaseException] = []
    barrier = threading.Barrier(num_ranks, timeout=60)

    def one(rank: int) -> None:
        def gather(columns_kN: Tensor) -> Tensor:
            assert sent[rank] is None, "a loss talks to the other ranks once"
            sent[rank] = columns_kN
            barrier.wait()
            return torch.stack([part for part in sent if part is not None])

        try:
            shares[rank] = run(rank, gather)
        except BaseException as error:
            failures.append(error)
            barrier.abort()

    threads = [threading.Thread(target=one, args=(rank,)) for rank in range(num_ranks)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]
    return [share for share in shares if share is not None]


def cut(num_ranks: int, rank: int) -> Tensor:
    """Pairs of a rank."""
    return torch.arange(NUM).tensor_split(num_ranks)[rank]


def column_order(num_ranks: int, num_columns: int) -> Tensor:
    """Places of the batch's columns as ranks gather them: of each rank its pairs' captions, then their hard negatives."""
    blocks = [cut(num_ranks, rank) for rank in range(num_ranks)]
    if num_columns > NUM:
        blocks = [torch.cat([block, block + NUM]) for block in blocks]
    return torch.cat(blocks)


def assert_same_gradients(shares: Sequence[PairGradients], batch: Batch, loss: Tensor, order: Tensor) -> None:
    """The shares add up to the dense loss and its gradients."""
    loss.backward()
    close = torch.testing.assert_close
    close(sum(share.loss for share in shares), loss.detach(), rtol=1e-13, atol=1e-13)
    close(torch.cat([share.image_RE for share in shares]), batch.image.grad, rtol=0, atol=1e-14)
    assert batch.text.grad is not None
    close(sum(share.text_ME for share in shares), batch.text.grad[order], rtol=0, atol=1e-14)
    close(sum(share.scale for share in shares), batch.scale.grad, rtol=0, atol=1e-14)
    bias = torch.zeros_like(batch.bias) if batch.bias.grad is None else batch.bias.grad
    if shares[0].bias is not None:
        close(sum(share.bias for share in shares), bias, rtol=0, atol=1e-13)
