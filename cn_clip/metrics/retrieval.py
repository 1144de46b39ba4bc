"""The numbers of a retrieval run, from the rank of every query's first right answer.

Shapes: N queries.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class DirectionScores:
    """How well one kind of query finds the other."""

    recall: dict[int, float]
    """k -> share of queries with a right answer among the first k, 0 to 1."""
    mean_rank: float
    """Of the first right answer, from 1."""
    median_rank: float
    """The same; of an even number of queries the mean of the two in the middle."""
    mean_reciprocal_rank: float
    """Mean of 1 / rank, above 0 to 1."""
    num_queries: int

    @classmethod
    def of(cls, ranks_N: Tensor, ks: Sequence[int]) -> DirectionScores:
        num = len(ranks_N)
        ordered = ranks_N.cpu().sort().values
        middle = (ordered[(num - 1) // 2] + ordered[num // 2]).item() / 2
        ranks = ordered.double()
        recall = {k: int((ordered <= k).sum()) / num for k in ks}
        return cls(recall, ranks.mean().item(), middle, (1 / ranks).mean().item(), num)

    @property
    def mean_recall(self) -> float:
        total = 0.0
        for share in self.recall.values():  # not sum(): from Python 3.12 on it rounds differently
            total += share
        return total / len(self.recall)

    def numbers(self, prefix: str) -> dict[str, float]:
        named = {f"{prefix}_recall@{k}": share for k, share in self.recall.items()}
        return named | {
            f"{prefix}_mean_recall": self.mean_recall,
            f"{prefix}_mean_rank": self.mean_rank,
            f"{prefix}_median_rank": self.median_rank,
            f"{prefix}_mrr": self.mean_reciprocal_rank,
        }


@dataclass(frozen=True)
class RetrievalScores:
    """Both directions of one set."""

    text_to_image: DirectionScores
    image_to_text: DirectionScores

    @property
    def mean_recall(self) -> float:
        """Mean of both directions' mean recall."""
        return (self.text_to_image.mean_recall + self.image_to_text.mean_recall) / 2

    def numbers(self) -> dict[str, float]:
        """Every number by its name in `metrics.jsonl`."""
        return {
            **self.text_to_image.numbers("text_to_image"),
            **self.image_to_text.numbers("image_to_text"),
            "mean_recall": self.mean_recall,
        }
