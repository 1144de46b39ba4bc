"""Recall of a ranking: the share of queries with a right answer among the first k found."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence


def recall_at_k(
    ranked_ids: Sequence[Sequence[int]], answers: Sequence[Collection[int]], ks: Sequence[int]
) -> dict[int, float]:
    """Recall at each k, 0 to 1; `ranked_ids[i]` are found for query i, best first, `answers[i]` its right ids.

    A query without any right id counts as missed. ValueError when there is no query or the two differ in length.
    """
    if len(ranked_ids) != len(answers) or not answers:
        raise ValueError(
            f"{len(ranked_ids)} rankings for {len(answers)} queries: need one each, at least one"
        )
    right = [frozenset(ids) for ids in answers]
    return {
        k: sum(not ids.isdisjoint(ranked[:k]) for ranked, ids in zip(ranked_ids, right, strict=True))
        / len(right)
        for k in ks
    }


def chance_recall(num_answers: Sequence[int], gallery_size: int, k: int) -> float:
    """Recall at k of a random ranking, 0 to 1; `num_answers[i]` right ids of query i are in the gallery."""
    k = min(k, gallery_size)
    every = math.comb(gallery_size, k)
    missed = sum(math.comb(gallery_size - count, k) / every for count in num_answers)
    return 1.0 - missed / len(num_answers)
