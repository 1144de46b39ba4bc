"""How many negatives of a batch are none: pairs whose picture or caption another pair of the batch shares.

`targets: diagonal` scores them as wrong. A batch is N of P pairs without replacement, so the pairs that a given pair
meets follow the hypergeometric distribution: nothing here is drawn.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from cn_clip.preprocess.inspection.groups import number_values
from cn_clip.preprocess.inspection.report import BatchRisk

Column = NDArray[np.int64]


def count_others(image_ids: Column, text_ids: Column, caption_keys: Column) -> Column:
    """(P,) for each pair, the other pairs with its picture id, text id or caption text: what `positives` treats as right.

    Two pairs may share several of them, and count once (inclusion and exclusion).
    """
    images, texts, captions = map(number_values, (image_ids, text_ids, caption_keys))
    image_texts = number_values(images, texts)
    return (
        _multiplicity(images)
        + _multiplicity(texts)
        + _multiplicity(captions)
        - _multiplicity(image_texts)
        - _multiplicity(number_values(images, captions))
        - _multiplicity(number_values(texts, captions))
        + _multiplicity(number_values(image_texts, captions))
        - 1
    )


def count_equal(values: Column) -> Column:
    """(P,) for each pair, the other pairs with the same value."""
    return _multiplicity(number_values(values)) - 1


def _multiplicity(numbers: Column) -> Column:
    return np.bincount(numbers)[numbers]


def risks(others: Column, batches: Sequence[int]) -> tuple[BatchRisk, ...]:
    """Of each batch size that this many pairs can fill."""
    return tuple(_risk(others, batch) for batch in batches if 2 <= batch <= len(others))


def _risk(others: Column, batch: int) -> BatchRisk:
    num_other = len(others) - 1
    share_of_negatives = float(others.mean()) / num_other
    counts, num_pairs = np.unique(others, return_counts=True)
    meeting = 1 - _probability_of_none(counts, batch - 1, num_other)
    return BatchRisk(
        batch=batch,
        false_per_pair=share_of_negatives * (batch - 1),
        share_of_negatives=share_of_negatives,
        share_of_pairs=float((meeting * num_pairs).sum() / len(others)),
    )


def _probability_of_none(counts: Column, num_drawn: int, num_all: int) -> NDArray[np.float64]:
    """That `num_drawn` of `num_all` rows hold none of m marked ones, for each m: C(all - m, drawn) / C(all, drawn).

    The quotient is a product of m factors (all - drawn - j) / (all - j), so one running sum of logarithms serves every m.
    """
    j = np.arange(int(counts.max()), dtype=np.float64)
    with np.errstate(divide="ignore"):  # a factor of 0: the batch has no room to avoid them all
        logs = np.log(np.clip((num_all - num_drawn - j) / (num_all - j), 0, 1))
    return np.exp(np.concatenate([[0.0], np.cumsum(logs)]))[counts]
