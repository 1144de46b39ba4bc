"""The sigmoid loss against its dense form in float64, and against open_clip's."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from open_clip.loss import SigLipLoss
from torch import Tensor

from cn_clip.losses.pair import GatherColumns, PairGradients, PairIds, sigmoid
from cn_clip.losses.pair.sigmoid import sigmoid_gradients
from tests.losses import dense


def alone(columns: Tensor) -> Tensor:
    return columns[None]


def own_ids(num: int) -> PairIds:
    return PairIds(*(torch.arange(num) for _ in range(5)))


def shares_of(batch: dense.Batch, num_ranks: int, **options: object) -> list[PairGradients]:
    order = dense.column_order(num_ranks, len(batch.text))

    def run(rank: int, gather: GatherColumns) -> PairGradients:
        rows = dense.cut(num_ranks, rank)
        return sigmoid_gradients(
            batch.image[rows], batch.text[order], batch.scale, batch.rows.at(rows), batch.columns.at(order), gather,
            bias=batch.bias, **options,  # type: ignore[arg-type]
        )  # fmt: skip

    return dense.on_ranks(num_ranks, run)


@pytest.mark.parametrize("hard", [False, True])
@pytest.mark.parametrize("targets", ["diagonal", "positives", "mask"])
def test_equals_the_dense_form_for_every_tile_and_cut(targets: str, hard: bool) -> None:
    for num_ranks in (1, 2, 3, 4):
        for tile in (1, 5, dense.NUM, 100):
            batch = dense.Batch.make(hard=hard)
            shares = shares_of(batch, num_ranks, targets=targets, tile=tile)
            order = dense.column_order(num_ranks, len(batch.text))
            dense.assert_same_gradients(shares, batch, dense.sigmoid(batch, targets), order)


@pytest.mark.parametrize("num", [32, 37])
def test_agrees_with_open_clip(num: int) -> None:
    generator = torch.Generator().manual_seed(0)
    image, text = (
        F.normalize(torch.randn(num, 16, dtype=torch.float64, generator=generator), dim=1).requires_grad_()
        for _ in range(2)
    )
    scale, bias = (torch.tensor(x, dtype=torch.float64, requires_grad=True) for x in (10.0, -10.0))
    theirs = SigLipLoss()(image, text, scale, bias)
    theirs.backward()
    run = sigmoid.build(sigmoid.Options(tile=32))
    found = run(image, text, scale, own_ids(num), own_ids(num), alone, bias=bias)
    torch.testing.assert_close(found.loss, theirs.detach(), rtol=1e-13, atol=0)
    assert found.bias is not None
    pairs = ((found.image_RE, image), (found.text_ME, text), (found.scale, scale), (found.bias, bias))
    for ours, leaf in pairs:
        torch.testing.assert_close(ours, leaf.grad, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(("scale", "bias"), [(10.0, -10.0), (100.0, -16.0), (1e4, 0.0), (1.0, -60.0)])
def test_fp32_keeps_small_losses_and_large_logits(scale: float, bias: float) -> None:
    generator = torch.Generator().manual_seed(0)
    image = F.normalize(torch.randn(64, 16, dtype=torch.float64, generator=generator), dim=1)
    for text in (image, -image, image.roll(1, 0)):
        logits = scale * image @ text.T + bias
        signs = 2 * torch.eye(64, dtype=torch.float64) - 1
        exact = F.softplus(-signs * logits, threshold=200).sum() / 64
        found = sigmoid_gradients(
            image.float(), text.float(), torch.tensor(scale), own_ids(64), own_ids(64), alone,
            bias=torch.tensor(bias), tile=16,
        )  # fmt: skip
        torch.testing.assert_close(found.loss.double(), exact, rtol=1e-4, atol=1e-30)
        assert found.image_RE.isfinite().all() and found.scale.isfinite()


def test_hits_do_not_depend_on_the_bias_or_the_cut() -> None:
    batch = dense.Batch.make(hard=True)
    right, counts = batch.relations("positives")
    logits = (batch.image @ batch.text.T).masked_fill(~counts, float("-inf")).detach()
    image_hits = right.gather(1, logits.argmax(1, keepdim=True)).sum()
    text_hits = right.gather(0, logits[:, : dense.NUM].argmax(0, keepdim=True)).sum()
    for num_ranks in (1, 3):
        shares = shares_of(batch, num_ranks, targets="positives", tile=5)
        assert sum(share.image_hits for share in shares) == image_hits
        assert {share.text_hits.item() for share in shares} == {text_hits.item()}


def test_the_bias_keeps_its_shape_and_may_be_missing() -> None:
    batch = dense.Batch.make(hard=False)
    words = (batch.image, batch.text, batch.scale, batch.rows, batch.columns, alone)
    found = sigmoid_gradients(*words, bias=torch.zeros(1, dtype=torch.float64))
    without = sigmoid_gradients(*words)
    assert found.bias is not None and found.bias.shape == (1,)
    assert without.bias is None and without.loss == found.loss
