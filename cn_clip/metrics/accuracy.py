"""How often a classifier is right.

Shapes: N samples, K classes.
"""

from __future__ import annotations

import torch
from torch import Tensor


def count_correct(scores_NK: Tensor, labels_N: Tensor, k: int = 1) -> int:
    """Number of samples whose label is among their k best classes (all of them, when there are fewer)."""
    best_Nk = scores_NK.topk(min(k, scores_NK.shape[1]), dim=1).indices
    return int((best_Nk == labels_N[:, None]).sum())


def mean_class_accuracy(scores_NK: Tensor, labels_N: Tensor) -> float:
    """Share of correct samples of each class that has any, averaged over those classes (0 to 1)."""
    is_correct_N = (scores_NK.argmax(1) == labels_N).double()
    classes_C, class_of_N = labels_N.unique(return_inverse=True)
    correct_C = torch.zeros(len(classes_C), dtype=torch.float64, device=labels_N.device)
    correct_C.index_add_(0, class_of_N, is_correct_N)
    return float((correct_C / class_of_N.bincount(minlength=len(classes_C))).mean())
