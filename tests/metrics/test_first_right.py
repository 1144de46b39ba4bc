"""Ranks of first right answers against the definition, spelt out pair by pair."""

from __future__ import annotations

import random

import pytest
import torch
from torch import Tensor

from cn_clip.eval.retrieval.search import top_k
from cn_clip.metrics.first_right import Exchange, Features, Tiling, ranks_of_first_right
from cn_clip.metrics.recall import recall_at_k
from cn_clip.metrics.retrieval import DirectionScores, RetrievalScores
from cn_clip.metrics.right_pairs import RightPairs

ALONE = Exchange(gather=lambda rows: rows, add_up=lambda value: value, device=torch.device("cpu"))
Pairs = list[tuple[int, int, int]]
"""(image id, text id, caption key)."""


def random_pairs(rng: random.Random, *, repeated_texts: bool) -> Pairs:
    """Many-to-many: pictures with several captions, captions with several pictures, some texts under several ids."""
    key_of = {text: rng.randrange(12) if repeated_texts else text for text in range(100, 125)}
    pairs = [(rng.randrange(18) * 7 - 20, text, key_of[text]) for text in rng.choices(range(100, 125), k=45)]
    return pairs + rng.choices(pairs, k=6)  # padding copies


def features_on_a_grid(num: int, generator: torch.Generator) -> Tensor:
    """Few different numbers, so that many scores are equal."""
    return torch.randint(-1, 2, (num, 3), generator=generator).float()


def right_pairs(pairs: Pairs, counts: Tensor | None = None) -> RightPairs:
    images, texts, keys = torch.tensor(pairs).T
    return RightPairs.of(
        images, texts, keys, torch.ones(len(pairs), dtype=torch.bool) if counts is None else counts
    )


def ranks_by_definition(scores_QC: list[list[float]], is_right: list[list[bool]]) -> list[int]:
    """Candidates in the order of scores, equal ones by place; where the first right one stands."""
    ranks = []
    for scores, rights in zip(scores_QC, is_right, strict=True):
        order = sorted(range(len(scores)), key=lambda place: (-scores[place], place))
        ranks.append(1 + next(number for number, place in enumerate(order) if rights[place]))
    return ranks


def rightness(pairs: Pairs) -> list[list[bool]]:
    """(pictures, captions), both in the order of ids."""
    images, texts = sorted({pair[0] for pair in pairs}), sorted({pair[1] for pair in pairs})
    key_of = {text: key for _, text, key in pairs}
    joined = {(image, key_of[text]) for image, text, _ in pairs}
    return [[(image, key_of[text]) in joined for text in texts] for image in images]


def found(
    image_IE: Tensor, text_TE: Tensor, right: RightPairs, tiling: Tiling
) -> tuple[list[int], list[int]]:
    pictures = Features(torch.arange(len(image_IE)), image_IE)
    captions = Features(torch.arange(len(text_TE)), text_TE)
    image_ranks, text_ranks = ranks_of_first_right(pictures, captions, right, ALONE, tiling)
    return image_ranks.tolist(), text_ranks.tolist()


@pytest.mark.parametrize("repeated_texts", [False, True])
@pytest.mark.parametrize("tiling", [Tiling(), Tiling(pictures=1, captions=1), Tiling(pictures=4, captions=7)])
def test_ranks_are_those_of_the_definition(tiling: Tiling, repeated_texts: bool) -> None:
    for seed in range(20):
        pairs = random_pairs(random.Random(seed), repeated_texts=repeated_texts)
        right = right_pairs(pairs)
        generator = torch.Generator().manual_seed(seed)
        image_IE = features_on_a_grid(len(right.pictures), generator)
        text_TE = features_on_a_grid(len(right.captions), generator)
        scores_IT = (image_IE @ text_TE.T).tolist()
        is_right = rightness(pairs)
        by_picture = ranks_by_definition(scores_IT, is_right)
        by_caption = ranks_by_definition(
            [list(row) for row in zip(*scores_IT, strict=True)],
            [list(row) for row in zip(*is_right, strict=True)],
        )
        assert found(image_IE, text_TE, right, tiling) == (by_picture, by_caption)


def test_recall_is_that_of_search_and_score_on_the_same_features() -> None:
    """What extracting features, `cn-clip search` and `cn-clip evaluate` give, ties included."""
    pairs = random_pairs(random.Random(3), repeated_texts=False)
    right, ks = right_pairs(pairs), (1, 3, 10)
    generator = torch.Generator().manual_seed(3)
    image_IE = torch.nn.functional.normalize(torch.randn(len(right.pictures), 6, generator=generator), dim=-1)
    text_TE = torch.nn.functional.normalize(torch.randn(len(right.captions), 6, generator=generator), dim=-1)
    image_IE[4] = image_IE[9]  # the same picture under two ids
    scores = [
        DirectionScores.of(torch.tensor(ranks), ks) for ranks in found(image_IE, text_TE, right, Tiling())
    ]
    rights = rightness(pairs)
    for direction, query, gallery, answers in (
        (scores[0], image_IE, text_TE, rights),
        (scores[1], text_TE, image_IE, [list(row) for row in zip(*rights, strict=True)]),
    ):
        ids = [[place for place, is_right in enumerate(row) if is_right] for row in answers]
        assert direction.recall == recall_at_k(top_k(query, gallery, 10).tolist(), ids, ks)


def test_a_model_that_gives_all_the_same_features_is_no_better_than_chance() -> None:
    pairs = [(number, 100 + number, number) for number in range(50)]
    right = right_pairs(pairs)
    ranks, _ = found(torch.ones(50, 4), torch.ones(50, 4), right, Tiling())
    assert ranks == list(range(1, 51))


def test_features_that_are_no_numbers_find_nothing_before_those_that_are() -> None:
    pairs = [(number, 100 + number, number) for number in range(5)]
    image_IE = torch.eye(5)
    image_IE[3] = torch.nan
    by_picture, by_caption = found(image_IE, torch.eye(5), right_pairs(pairs), Tiling())
    assert by_picture == [1, 1, 1, 4, 1]  # five equal scores: the fourth of them is right
    assert by_caption == [1, 1, 1, 5, 1]


def test_pairs_left_out_neither_ask_nor_answer() -> None:
    pairs = [(1, 100, 0), (2, 101, 1), (1, 102, 2), (3, 100, 0)]
    right = right_pairs(pairs, torch.tensor([True, True, False, False]))
    assert (len(right.pictures), len(right.captions)) == (2, 2)
    assert found(torch.eye(2), torch.eye(2), right, Tiling()) == ([1, 1], [1, 1])


def test_a_caption_on_all_pictures_is_looked_at_in_chunks() -> None:
    """One text under many ids on many pictures: every caption is right for every picture."""
    pairs = [(number, 5000 + number, 7) for number in range(1500)]
    features = torch.randn(1500, 8, generator=torch.Generator().manual_seed(0))
    by_picture, by_caption = found(features, features.roll(1, 0), right_pairs(pairs), Tiling())
    assert set(by_picture) == set(by_caption) == {1}


def test_scores_of_ranks() -> None:
    scores = DirectionScores.of(torch.tensor([1, 4, 2, 11]), (1, 5, 10))
    assert scores.recall == {1: 0.25, 5: 0.75, 10: 0.75}
    assert (scores.mean_rank, scores.median_rank, scores.num_queries) == (4.5, 3.0, 4)
    assert scores.mean_reciprocal_rank == pytest.approx((1 + 1 / 4 + 1 / 2 + 1 / 11) / 4)
    assert DirectionScores.of(torch.tensor([7, 1, 2]), (1,)).median_rank == 2.0


def test_numbers_have_names() -> None:
    one, other = (
        DirectionScores.of(torch.tensor([1, 2]), (1, 5)),
        DirectionScores.of(torch.tensor([9, 3]), (1, 5)),
    )
    numbers = RetrievalScores(text_to_image=one, image_to_text=other).numbers()
    assert numbers["text_to_image_recall@1"] == 0.5 and numbers["image_to_text_recall@5"] == 0.5
    assert numbers["text_to_image_mean_recall"] == 0.75 and numbers["image_to_text_mean_recall"] == 0.25
    assert numbers["mean_recall"] == 0.5
    assert numbers["image_to_text_median_rank"] == 6.0
