"""Effective negatives and suspected false negatives against their definition on the whole matrix."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from cn_clip.losses.pair import Diagnostics, GatherColumns, PairGradients
from cn_clip.losses.pair.contrastive import contrastive_gradients
from cn_clip.losses.pair.sigmoid import sigmoid_gradients
from tests.losses import dense


def diagnosed(batch: dense.Batch, kind: str, targets: str, num_ranks: int, tile: int) -> list[Diagnostics]:
    order = dense.column_order(num_ranks, len(batch.text))
    loss = contrastive_gradients if kind == "softmax" else sigmoid_gradients

    def run(rank: int, gather: GatherColumns) -> PairGradients:
        rows = dense.cut(num_ranks, rank)
        return loss(
            batch.image[rows], batch.text[order], batch.scale, batch.rows.at(rows), batch.columns.at(order), gather,
            bias=batch.bias, diagnose=True, targets=targets, tile=tile,  # type: ignore[arg-type]
        )  # fmt: skip

    found = [share.diagnostics for share in dense.on_ranks(num_ranks, run)]
    return [each for each in found if each is not None]


def effective_negatives(batch: dense.Batch, kind: str, targets: str) -> Tensor:
    right, counts = batch.relations(targets)
    logits = batch.scale * batch.image @ batch.text.T
    weights = logits.exp() if kind == "softmax" else (logits + batch.bias).sigmoid()
    share = torch.where(counts & ~right, weights, 0)
    share = share / share.sum(1, keepdim=True)
    return torch.special.entr(share).sum(1).exp().mean().detach()


@pytest.mark.parametrize("kind", ["softmax", "sigmoid"])
@pytest.mark.parametrize("targets", ["diagonal", "positives", "mask"])
def test_effective_negatives(kind: str, targets: str) -> None:
    batch = dense.Batch.make(hard=True)
    expected = effective_negatives(batch, kind, targets)
    assert 1 < expected < dense.NUM_COLUMNS
    for num_ranks, tile in ((1, 100), (1, 5), (3, 2)):
        found = sum(each.effective_negatives for each in diagnosed(batch, kind, targets, num_ranks, tile))
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("kind", ["softmax", "sigmoid"])
def test_suspects_are_the_rows_whose_best_wrong_caption_comes_nearest(kind: str) -> None:
    batch = dense.Batch.make(hard=True)
    right, counts = batch.relations("mask")
    cosines = (batch.image @ batch.text.T).detach()
    best, where = cosines.masked_fill(~(counts & ~right), float("-inf")).max(1)
    margins = best - cosines.diagonal()
    worst = margins.argsort(descending=True)[:8]
    found = diagnosed(batch, kind, "mask", num_ranks=1, tile=5)[0]
    torch.testing.assert_close(found.margins_K, margins[worst])
    assert torch.equal(found.right.positions, batch.rows.positions[worst])
    for ours, all_ids in zip(vars(found.wrong).values(), vars(batch.columns).values(), strict=True):
        assert torch.equal(ours, all_ids[where[worst]])
    first = found.suspects()[0]
    assert first["margin"] == found.margins_K[0] and len(found.suspects()) == 8
    assert (first["pair_id"], first["image_id"], first["text_id"]) == tuple(
        ids[worst[0]] for ids in (batch.rows.pair_ids, batch.rows.image_ids, batch.rows.text_ids)
    )
    assert first["other_image_id"] == batch.columns.image_ids[where[worst[0]]]


def test_watching_changes_nothing() -> None:
    batch = dense.Batch.make(hard=True)
    words = (batch.image, batch.text, batch.scale, batch.rows, batch.columns, lambda c: c[None])
    for loss in (contrastive_gradients, sigmoid_gradients):
        plain = loss(*words, bias=batch.bias, targets="positives", tile=5)
        watched = loss(*words, bias=batch.bias, targets="positives", tile=5, diagnose=True)
        assert plain.loss == watched.loss and torch.equal(plain.text_ME, watched.text_ME)
        assert torch.equal(plain.image_RE, watched.image_RE)
