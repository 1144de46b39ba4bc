from __future__ import annotations

import pytest
import torch

from cn_clip.metrics.accuracy import count_correct, mean_class_accuracy

SCORES = torch.tensor([[0.7, 0.2, 0.1], [0.1, 0.3, 0.6], [0.2, 0.5, 0.3], [0.4, 0.35, 0.25]])
LABELS = torch.tensor([0, 1, 1, 1])


@pytest.mark.parametrize(("k", "expected"), [(1, 2), (2, 4), (3, 4), (10, 4)])
def test_count_correct(k: int, expected: int) -> None:
    assert count_correct(SCORES, LABELS, k) == expected


def test_mean_class_accuracy_weighs_classes_equally_and_leaves_out_empty_ones() -> None:
    assert mean_class_accuracy(SCORES, LABELS) == pytest.approx((1 + 1 / 3) / 2)
    labels_with_gap = torch.tensor([0, 2, 1, 0])
    assert mean_class_accuracy(SCORES, labels_with_gap) == pytest.approx(1.0)
