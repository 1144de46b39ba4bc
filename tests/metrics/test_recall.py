from __future__ import annotations

import random

import pytest

from cn_clip.metrics.recall import chance_recall, recall_at_k


def test_counts_queries_with_a_right_id_among_the_first_k() -> None:
    ranked = [[3, 1, 2], [9, 8, 7], [5, 4, 6]]
    answers = [[1], [7, 8], [0]]
    assert recall_at_k(ranked, answers, (1, 2, 3)) == {1: 0.0, 2: 2 / 3, 3: 2 / 3}


def test_query_without_right_ids_is_a_miss() -> None:
    assert recall_at_k([[1], [2]], [[1], []], (1,)) == {1: 0.5}


@pytest.mark.parametrize(("ranked", "answers"), [([], []), ([[1]], [[1], [2]])])
def test_refuses_nothing_or_unequal_counts(ranked: list[list[int]], answers: list[list[int]]) -> None:
    with pytest.raises(ValueError, match="rankings"):
        recall_at_k(ranked, answers, (1,))


@pytest.mark.parametrize("k", [1, 5, 40])
def test_chance_is_what_random_rankings_reach(k: int) -> None:
    rng = random.Random(7)
    num_answers, gallery = [1, 2, 5], list(range(20))
    ranked, answers = [], []
    for _ in range(20000):
        ranked.append(rng.sample(gallery, len(gallery)))
        answers.append(range(num_answers[len(answers) % 3]))
    assert recall_at_k(ranked, answers, (k,))[k] == pytest.approx(chance_recall(num_answers, 20, k), abs=0.01)
