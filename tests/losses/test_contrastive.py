"""The contrastive loss against its dense form in float64, for every target mode, tile size and cut into ranks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from open_clip.loss import ClipLoss
from torch import Tensor

from cn_clip.losses.pair import GatherColumns, PairGradients, PairIds, Targets, contrastive
from cn_clip.losses.pair.contrastive import contrastive_gradients
from tests.losses import dense


def alone(columns: Tensor) -> Tensor:
    return columns[None]


def own_ids(num: int) -> PairIds:
    """Pairs that have nothing in common."""
    return PairIds(*(torch.arange(num) for _ in range(5)))


def unit(num: int, seed: int, width: int = 16, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(num, width, dtype=torch.float64, generator=generator), dim=1).to(dtype)


def shares_of(batch: dense.Batch, num_ranks: int, **options: object) -> list[PairGradients]:
    order = dense.column_order(num_ranks, len(batch.text))

    def run(rank: int, gather: GatherColumns) -> PairGradients:
        rows = dense.cut(num_ranks, rank)
        return contrastive_gradients(
            batch.image[rows], batch.text[order], batch.scale, batch.rows.at(rows), batch.columns.at(order), gather,
            bias=batch.bias, **options,  # type: ignore[arg-type]
        )  # fmt: skip

    return dense.on_ranks(num_ranks, run)


@pytest.mark.parametrize("hard", [False, True])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("targets", dense.TARGETS)
def test_equals_the_dense_form_for_every_tile_and_cut(targets: Targets, smoothing: float, hard: bool) -> None:
    for num_ranks in (1, 2, 3, 4):
        for tile in (1, 5, dense.NUM, 100):
            batch = dense.Batch.make(hard=hard)
            shares = shares_of(batch, num_ranks, targets=targets, smoothing=smoothing, tile=tile)
            loss = dense.contrastive(batch, targets, smoothing)
            order = dense.column_order(num_ranks, len(batch.text))
            dense.assert_same_gradients(shares, batch, loss, order)


@pytest.mark.parametrize("targets", dense.TARGETS)
@pytest.mark.parametrize("tile", [3, 100])
def test_rows_may_stand_in_another_order_than_columns(targets: Targets, tile: int) -> None:
    batch = dense.Batch.make(hard=True)
    order = torch.randperm(len(batch.text), generator=torch.Generator().manual_seed(3))
    found = contrastive_gradients(
        batch.image, batch.text[order], batch.scale, batch.rows, batch.columns.at(order), alone,
        bias=batch.bias, targets=targets, tile=tile,  # type: ignore[arg-type]
    )  # fmt: skip
    dense.assert_same_gradients([found], batch, dense.contrastive(batch, targets, 0.0), order)


@pytest.mark.parametrize("targets", dense.TARGETS)
@pytest.mark.parametrize("tile", [3, 100])
def test_copies_of_a_pair_are_never_negatives(targets: Targets, tile: int) -> None:
    """Copies pad an epoch; with nothing in common but the pair they are of, they must not push each other away."""
    pairs, numbers = torch.arange(dense.NUM), torch.arange(dense.NUM)
    pairs[[4, 9]] = 2
    ids = PairIds(numbers, pairs, numbers, numbers, numbers)
    batch = replace(dense.Batch.make(hard=False), rows=ids, columns=ids)
    found = contrastive_gradients(
        batch.image, batch.text, batch.scale, ids, ids, alone, targets=targets, tile=tile
    )
    dense.assert_same_gradients([found], batch, dense.contrastive(batch, targets, 0.0), numbers)
    right, counts = batch.relations(targets)
    assert not (counts & ~right)[2, [4, 9]].any()


def test_agrees_with_open_clip_and_torch() -> None:
    image, text = unit(33, 0).requires_grad_(), unit(33, 1).requires_grad_()
    scale = torch.tensor(50.0, dtype=torch.float64, requires_grad=True)
    theirs = ClipLoss()(image, text, scale)
    theirs.backward()
    found = contrastive_gradients(image, text, scale, own_ids(33), own_ids(33), alone, tile=8)
    torch.testing.assert_close(found.loss, theirs.detach(), rtol=1e-13, atol=0)
    for ours, leaf in ((found.image_RE, image), (found.text_ME, text), (found.scale, scale)):
        torch.testing.assert_close(ours, leaf.grad, rtol=0, atol=1e-14)
    logits, match = (scale * image @ text.T).detach(), torch.arange(33)
    smooth = partial(F.cross_entropy, target=match, label_smoothing=0.1)
    found = contrastive_gradients(image, text, scale, own_ids(33), own_ids(33), alone, smoothing=0.1, tile=8)
    torch.testing.assert_close(found.loss, (smooth(logits) + smooth(logits.T)) / 2, rtol=1e-13, atol=0)


def test_options_reach_the_loss() -> None:
    batch = dense.Batch.make(hard=True)
    words = (batch.image, batch.text, batch.scale, batch.rows, batch.columns, alone)
    found = contrastive.build(contrastive.Options(targets="mask", label_smoothing=0.3, tile=7))(*words)
    expected = dense.contrastive(batch, "mask", 0.3)
    torch.testing.assert_close(found.loss, expected.detach())
    assert found.bias is None and found.diagnostics is None


def test_filler_counts_nowhere_whatever_stands_in_it() -> None:
    batch = dense.Batch.make(hard=True)
    is_filler = (batch.columns.positions == -1) & (batch.columns.pair_ids == -1)
    kept = is_filler.logical_not().nonzero()[:, 0]
    text = batch.text.detach().clone()
    text[is_filler] = float("nan")
    words = (batch.image, batch.scale, batch.rows)
    image, scale, rows = words
    found = contrastive_gradients(image, text, scale, rows, batch.columns, alone, smoothing=0.1, tile=5)
    without = contrastive_gradients(
        image, text[kept], scale, rows, batch.columns.at(kept), alone, smoothing=0.1, tile=5
    )
    assert found.loss == without.loss and torch.equal(found.image_RE, without.image_RE)
    assert torch.equal(found.text_ME[kept], without.text_ME) and (found.text_ME[is_filler] == 0).all()


def test_a_text_that_is_right_is_no_hard_negative_where_texts_are_compared() -> None:
    """Pair 2's hard negative is its own caption's text: only `diagonal`, which looks at no text, pushes it away."""
    pushed = {}
    for targets in dense.TARGETS:
        batch = dense.Batch.make(hard=True)
        alone_2 = (
            batch.image[2:3],
            batch.text[[2, dense.NUM + 2]],
            batch.scale,
            batch.rows.at(torch.tensor([2])),
        )
        columns = batch.columns.at(torch.tensor([2, dense.NUM + 2]))
        pushed[targets] = contrastive_gradients(*alone_2, columns, alone, targets=targets).loss.item()  # type: ignore[arg-type]
    assert pushed["diagonal"] > 0 and pushed["positives"] == pushed["mask"] == 0


def test_hits_are_those_of_argmax_ties_included() -> None:
    image = torch.eye(4, 4)
    text = image[[0, 1, 3, 2]]  # captions 2 and 3 are swapped
    found = contrastive_gradients(image, text, torch.tensor(10.0), own_ids(4), own_ids(4), alone, tile=3)
    assert (found.image_hits, found.text_hits) == (2, 2)
    image, text = unit(9, 0)[[0, 1, 2, 3, 4, 0, 6, 1, 8]], unit(9, 1)[[0, 1, 2, 2, 4, 5, 6, 7, 2]]
    logits, match = image @ text.T, torch.arange(9)
    for tile in (1, 2, 4, 9):
        found = contrastive_gradients(
            image, text, torch.tensor(1.0), own_ids(9), own_ids(9), alone, tile=tile
        )
        assert found.image_hits == (logits.argmax(1) == match).sum()
        assert found.text_hits == (logits.argmax(0) == match).sum()


@pytest.mark.parametrize("num_ranks", [2, 3])
def test_hits_count_any_right_caption_on_any_rank(num_ranks: int) -> None:
    batch = dense.Batch.make(hard=True)
    right, counts = batch.relations("positives")
    logits = (batch.image @ batch.text.T).masked_fill(~counts, float("-inf")).detach()
    image_hits = right.gather(1, logits.argmax(1, keepdim=True)).sum()
    text_hits = right.gather(0, logits[:, : dense.NUM].argmax(0, keepdim=True)).sum()
    shares = shares_of(batch, num_ranks, targets="positives", tile=2)
    assert sum(share.image_hits for share in shares) == image_hits
    assert {share.text_hits.item() for share in shares} == {text_hits.item()}


def test_fp32_at_the_largest_scale_is_as_good_as_dense_fp32() -> None:
    image = unit(96, 0)
    text = F.normalize(image + 0.9 * unit(96, 1), dim=1)  # most pairs are found, so differences are small
    scale, match = torch.tensor(100.0), torch.arange(96)

    def dense_form(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        leaves = [each.to(dtype).requires_grad_() for each in (image, text)]
        logits = 100 * leaves[0] @ leaves[1].T
        loss = (F.cross_entropy(logits, match) + F.cross_entropy(logits.T, match)) / 2
        return loss.detach(), torch.cat(torch.autograd.grad(loss, leaves))

    (loss, gradient), (rough_loss, rough) = dense_form(torch.float64), dense_form(torch.float32)
    assert 1e-3 < loss < 1
    for tile in (7, 32, 96):
        found = contrastive_gradients(
            image.float(), text.float(), scale, own_ids(96), own_ids(96), alone, tile=tile
        )
        assert found.loss.dtype == found.image_RE.dtype == torch.float32
        assert (found.loss - loss).abs() < 2 * (rough_loss - loss).abs() + 1e-7
        error = (torch.cat([found.image_RE, found.text_ME]) - gradient).norm()
        assert error < 2 * (rough - gradient).norm() < 1e-4 * gradient.norm()


def test_half_precision_features_are_summed_in_fp32_inside_autocast() -> None:
    image, text = (unit(20, seed, dtype=torch.bfloat16) for seed in (0, 1))
    run: Callable[..., PairGradients] = partial(
        contrastive_gradients, scale=torch.tensor(100.0), row_ids=own_ids(20), column_ids=own_ids(20),
        gather_columns=alone, tile=8,
    )  # fmt: skip
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = run(image, text)
    expected = run(image.float(), text.float())
    assert found.loss == expected.loss and torch.equal(found.text_ME, expected.text_ME)
    assert found.image_RE.dtype == torch.float32


def test_extreme_logits_stay_finite() -> None:
    image = unit(6, 1, dtype=torch.float32)
    run = partial(contrastive_gradients, row_ids=own_ids(6), column_ids=own_ids(6), gather_columns=alone)
    for other in (image, -image):
        found = run(image, other, torch.tensor(1e4), tile=2)
        assert found.loss.isfinite() and found.image_RE.isfinite().all() and found.text_ME.isfinite().all()
    same = image[:1].expand(6, -1)  # a collapsed model knows nothing
    found = run(same, same, torch.tensor(100.0), tile=4, diagnose=True)
    torch.testing.assert_close(found.loss, torch.tensor(6.0).log())
    assert found.image_RE.abs().max() < 1e-4
    assert found.diagnostics is not None
    torch.testing.assert_close(found.diagnostics.effective_negatives, torch.tensor(5.0))
    found = run(image, image, torch.tensor(0.0), tile=4)
    torch.testing.assert_close(found.loss, torch.tensor(6.0).log())
    assert found.image_RE.abs().max() == 0 and found.scale.isfinite()


def test_a_row_whose_others_are_all_masked_has_nothing_to_learn() -> None:
    """Also on ranks of which no row counts for the columns of the other."""
    batch = dense.Batch.make(hard=False)
    same = PairIds(batch.rows.positions, *(torch.zeros(dense.NUM, dtype=torch.long) for _ in range(4)))
    batch = replace(batch, rows=same, columns=same)
    for num_ranks in (1, 3):
        for share in shares_of(batch, num_ranks, targets="mask", smoothing=0.1, tile=5, diagnose=True):
            assert share.loss.abs() < 1e-15 and share.image_RE.abs().max() < 1e-15
            assert share.text_ME.abs().max() < 1e-15
            assert share.diagnostics is not None and share.diagnostics.effective_negatives == 0
            assert share.diagnostics.suspects() == []


def test_what_is_not_finite_shows_in_the_loss() -> None:
    image, text = unit(6, 0), unit(6, 1)
    image[3, 2] = float("nan")
    found = contrastive_gradients(image, text, torch.tensor(10.0), own_ids(6), own_ids(6), alone, tile=4)
    assert not found.loss.isfinite()


def test_the_scale_keeps_its_shape() -> None:
    """DeepSpeed holds it as (1,)."""
    image, text = unit(4, 0), unit(4, 1)
    found = contrastive_gradients(image, text, torch.tensor([10.0]), own_ids(4), own_ids(4), alone)
    assert found.scale.shape == (1,) and found.loss.shape == ()
