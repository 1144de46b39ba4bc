"""What is learned from a teacher, against dense forms in float64 and open_clip's."""

from __future__ import annotations

import pytest
import torch
from open_clip.loss import DistillClipLoss

from cn_clip.losses.distillation import feature_distances, similarity_gradients
from cn_clip.losses.pair import GatherColumns, PairGradients
from tests.losses import dense


@pytest.mark.parametrize("num_ranks", [1, 2, 3, 4])
@pytest.mark.parametrize("tile", [1, 5, 12, 100])
def test_similarities_equal_the_dense_form(num_ranks: int, tile: int) -> None:
    batch, (teacher_image, teacher_text, teacher_scale) = dense.Batch.make(hard=False), dense.teacher()

    def run(rank: int, gather: GatherColumns) -> PairGradients:
        rows = dense.cut(num_ranks, rank)
        return similarity_gradients(
            batch.image[rows], batch.text, batch.scale, teacher_image[rows], teacher_text, teacher_scale, gather,
            tile=tile,
        )  # fmt: skip

    shares = dense.on_ranks(num_ranks, run)
    loss = dense.similarity(batch, *dense.teacher())
    dense.assert_same_gradients(shares, batch, loss, torch.arange(dense.NUM))


def test_similarities_agree_with_open_clip() -> None:
    batch, teacher = dense.Batch.make(hard=False), dense.teacher()
    _, theirs = DistillClipLoss()(batch.image, batch.text, batch.scale, *teacher)
    found = similarity_gradients(
        batch.image, batch.text, batch.scale, *teacher, lambda columns: columns[None]
    )
    torch.testing.assert_close(found.loss, theirs.detach(), rtol=1e-13, atol=0)


def test_a_student_that_is_its_teacher_has_nothing_to_learn() -> None:
    image, text = (each.half() for each in dense.teacher()[:2])
    found = similarity_gradients(
        image, text, torch.tensor(100.0), image, text, torch.tensor(100.0), lambda c: c[None], tile=7
    )
    assert found.image_RE.abs().max() == 0 and found.text_ME.abs().max() == 0 and found.scale == 0
    assert found.loss.dtype == torch.float32 and found.loss > 0  # the teacher's entropy


def test_feature_distances_and_their_gradient() -> None:
    student = dense.teacher()[0].requires_grad_()
    target = 3 * torch.randn(
        dense.NUM, dense.TEACHER_WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(1)
    )
    distances = feature_distances(student, target)
    expected = 1 - (student * target).sum(1) / (student.norm(dim=1) * target.norm(dim=1))
    torch.testing.assert_close(distances, expected)
    assert torch.autograd.gradcheck(lambda rows: feature_distances(rows, target), (student,))
    assert feature_distances(student, student.detach()).abs().max() < 1e-15


def test_feature_distances_are_taken_in_fp32_inside_autocast() -> None:
    student, target = (each.bfloat16() for each in dense.teacher()[:2])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = feature_distances(student, target)
    assert found.dtype == torch.float32
    assert torch.equal(found, feature_distances(student.float(), target.float()))


def test_unequal_widths_are_resized_only_if_asked() -> None:
    student, target = dense.teacher()[0].requires_grad_(), torch.randn(dense.NUM, 7, dtype=torch.float64)
    with pytest.raises(AssertionError):
        feature_distances(student, target)
    assert torch.autograd.gradcheck(
        lambda rows: feature_distances(rows, target, interpolate=True), (student,)
    )
