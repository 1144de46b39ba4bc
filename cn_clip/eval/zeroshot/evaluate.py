"""Zero-shot classification of a folder of pictures, from files to scores.

Shapes: N pictures, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from tqdm import tqdm

from cn_clip.eval.zeroshot.classifier import Encodes, class_vectors, classify
from cn_clip.eval.zeroshot.pictures import LabelledPictures
from cn_clip.metrics.accuracy import count_correct, mean_class_accuracy


@dataclass(frozen=True)
class Scores:
    probabilities: Tensor
    """[N, K], in the order of folders and files."""
    labels: Tensor
    """[N], the right classes."""

    def top(self, k: int) -> float:
        """Share of pictures whose class is among the k most probable, 0 to 1."""
        return count_correct(self.probabilities, self.labels, k) / len(self.labels)

    @property
    def mean_class(self) -> float:
        """Accuracy averaged over classes, 0 to 1."""
        return mean_class_accuracy(self.probabilities, self.labels)


def evaluate(
    encoder: Encodes,
    names: Sequence[str],
    templates: Sequence[str],
    pictures: LabelledPictures,
    context_length: int,
    scale: float,
) -> Scores:
    """Classify every picture by the class vectors of `names`."""
    vectors_KE = class_vectors(encoder, names, templates, context_length)
    batches = tqdm(pictures, desc="pictures", unit=" batches", disable=None)
    probabilities, labels = zip(*classify(encoder, batches, vectors_KE, scale), strict=True)
    return Scores(torch.cat(probabilities), torch.cat(labels))
