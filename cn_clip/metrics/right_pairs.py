"""What the pairs of a set say: which pictures and captions there are, and which of them belong together.

Pictures with one id are one picture, captions with one id one caption. A caption is right for a picture when a pair joins
them, and also when a pair joins the picture with a caption of the same text: nobody could tell such captions apart.

Shapes: P pairs as they came, copies included; I pictures, T captions, J joins of a picture and a text.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Distinct:
    """The different things among the P that came; a *place* is a thing's number in the order of ids."""

    first_pair_N: Tensor
    """Pair that each is seen in first."""
    place_P: Tensor
    """Which one each pair has; -1 for a pair that is left out."""

    def __len__(self) -> int:
        return len(self.first_pair_N)

    @classmethod
    def among(cls, ids_P: Tensor, counts_P: Tensor) -> Distinct:
        """Those of the pairs that count."""
        pairs = counts_P.nonzero()[:, 0]
        ids_N, places = ids_P[pairs].unique(return_inverse=True)
        first_pair_N = pairs.new_full((len(ids_N),), len(ids_P)).scatter_reduce(0, places, pairs, "amin")
        return cls(first_pair_N, torch.full_like(ids_P, -1).masked_scatter(counts_P, places))


@dataclass(frozen=True)
class RightPairs:
    """Who is there, and who is right for whom."""

    pictures: Distinct
    captions: Distinct
    text_T: Tensor
    """Number of each caption's text: equal for captions of the same text."""
    joined_picture_J: Tensor
    """With `joined_text_J`: the texts that are right for each picture, each join once."""
    joined_text_J: Tensor

    @classmethod
    def of(
        cls, image_ids_P: Tensor, text_ids_P: Tensor, caption_keys_P: Tensor, counts_P: Tensor
    ) -> RightPairs:
        """From the ids of every pair, int64; `counts_P` is false for pairs that are left out."""
        pictures = Distinct.among(image_ids_P, counts_P)
        captions = Distinct.among(text_ids_P, counts_P)
        keys, text_T = caption_keys_P[captions.first_pair_N].unique(return_inverse=True)
        text_P = text_T[captions.place_P[counts_P]]
        joins_J = (pictures.place_P[counts_P] * len(keys) + text_P).unique()
        return cls(pictures, captions, text_T, joins_J // len(keys), joins_J % len(keys))
