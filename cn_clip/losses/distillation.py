"""What a student learns from a teacher: its features of each picture, or its similarities of all pairs of a batch.

`feature_distances` is a plain function of rows, to be weighed and added where the features have their graph. The loss of
similarities needs the whole batch and returns derivatives, as the losses of pairs do.

Shapes: B pictures, R rows of this rank, N pairs of all ranks, E embedding of the student, F of the teacher; i, j rows and
columns of one tile.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor

from cn_clip.losses.lines import ExpSum, ExpSummer, add_softmaxes
from cn_clip.losses.pair import GatherColumns, PairGradients
from cn_clip.losses.tiles import DEFAULT_TILE, Tiles, plain_arithmetic


def feature_distances(student_BE: Tensor, teacher_BF: Tensor, *, interpolate: bool = False) -> Tensor:
    """(B,) 1 - cosine of each picture's features by student and teacher, 0 to 2; differentiable in the student's.

    The loss is their mean over all pairs of the global batch, the reference's number where it compares right rows (its
    ranks above 0 do not). Widths must agree; `interpolate` resizes the student's features along their width as the
    reference does, which mixes channels that have nothing to do with each other.
    """
    device = student_BE.device.type
    has_autocast = torch.amp.is_autocast_available(device)
    with torch.autocast(device, enabled=False) if has_autocast else nullcontext():
        if student_BE.dtype != torch.float64:
            student_BE = student_BE.float()
        teacher_BF = teacher_BF.detach().to(student_BE.dtype)
        if interpolate and student_BE.shape[1] != teacher_BF.shape[1]:
            # the reference's bilinear resizing of the matrix as a picture: its height stays, so only widths are mixed
            resized_B1F = F.interpolate(student_BE[:, None], size=teacher_BF.shape[1], mode="linear")
            student_BE = resized_B1F[:, 0]
        assert student_BE.shape == teacher_BF.shape, "student and teacher have equal widths"
        return 1 - F.cosine_similarity(teacher_BF, student_BE, dim=1)


def similarity_gradients(
    image_RE: Tensor,
    text_NE: Tensor,
    scale: Tensor,
    teacher_image_RF: Tensor,
    teacher_text_NF: Tensor,
    teacher_scale: Tensor,
    gather_columns: GatherColumns,
    *,
    tile: int = DEFAULT_TILE,
) -> PairGradients:
    """Cross entropy of the student's similarities under the teacher's, rows and columns alike, over the global batch.

    Features of both are unit length and their scales factors of the cosine; `gather_columns` is called once.
    With P and Q the softmax of student and teacher along a line, the loss is the mean over rows and columns of -ΣQ·log P
    and dLoss/dS = (P_row + P_col - Q_row - Q_col) / 2N; the teacher's tiles are computed again, too. Columns are the
    captions of the pairs alone, of student and teacher in the same order. Hits are 0: no ids say what is right.
    """
    with plain_arithmetic(image_RE.device):
        num_rows, num = len(image_RE), len(text_NE)
        student = Tiles(image_RE, text_NE, scale, tile)
        teacher_image_RF, teacher_text_NF = (
            each.to(student.dtype) for each in (teacher_image_RF, teacher_text_NF)
        )
        teacher = Tiles(teacher_image_RF, teacher_text_NF, teacher_scale, tile)
        rows, columns = _sums(student, teacher, gather_columns)
        matched = _differentiate(student, teacher, rows, columns)
        d_image_RE, d_text_NE, d_scale = student.gradients(1 / (2 * num))
        # the sums of the columns are on every rank whole, so each takes its rows' share of them
        share = num_rows / num
        whole = rows[0].log().sum() + share * columns[0].log().sum()
        loss = (whole - matched) / (2 * num)
        none = torch.zeros_like(loss)
        return PairGradients(loss, d_image_RE, d_text_NE, d_scale, image_hits=none, text_hits=none.clone())


def _sums(student: Tiles, teacher: Tiles, gather_columns: GatherColumns) -> tuple[list[ExpSum], list[ExpSum]]:
    """Of student and teacher: sums of this rank's rows, and of all columns over all ranks."""
    like = student.image_RE
    rows = [ExpSummer(len(like), like) for _ in range(2)]
    columns = [ExpSummer(len(student.text_ME), like) for _ in range(2)]
    for pair in zip(student.walk(), teacher.walk(), strict=True):
        for tile, row, column in zip(pair, rows, columns, strict=True):
            row.add(tile.i, tile.logits, tile.spare, dim=1)
            column.add(tile.j, tile.logits, tile.spare, dim=0)
    sums = [column.sum() for column in columns]
    gathered = gather_columns(torch.stack([part for each in sums for part in (each.largest, each.total)]))
    largest, total, teacher_largest, teacher_total = gathered.unbind(1)
    joined = [ExpSum.joined(largest, total), ExpSum.joined(teacher_largest, teacher_total)]
    return [row.sum() for row in rows], joined


def _differentiate(
    student: Tiles, teacher: Tiles, rows: Sequence[ExpSum], columns: Sequence[ExpSum]
) -> Tensor:
    """Send 2N·dLoss/dS back; returns () the sum of (Q_row + Q_col)·S over this rank's rows."""
    matched = student.image_RE.new_zeros(())
    for own, other in zip(student.walk(), teacher.walk(), strict=True):
        i, j = own.i, own.j
        add_softmaxes(other.logits, other.spare, rows[1], columns[1], i, j)
        matched += torch.mul(other.logits, own.logits, out=own.spare).sum()
        add_softmaxes(own.logits, own.spare, rows[0], columns[0], i, j)
        student.back(own, own.logits.sub_(other.logits))
    return matched
