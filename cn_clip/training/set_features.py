"""Features of a validation set while its batches go by: each distinct picture and caption once, off the GPU.

Shapes: B pairs of a batch, R pairs of this rank, P pairs of all ranks, n things that this rank met first, E embedding.
"""

from __future__ import annotations

import torch
from torch import Tensor

from cn_clip.data.batches import PairBatch
from cn_clip.metrics.first_right import Exchange, Features
from cn_clip.metrics.right_pairs import Distinct, RightPairs


class SetFeatures:
    """What this rank has seen of one set."""

    def __init__(self, max_pairs: int | None) -> None:
        """`max_pairs`: pairs that count, the first ones as the set numbers them; None is all."""
        self._max_pairs = max_pairs
        self._num_pairs = 0
        self._ids: list[Tensor] = []
        self._pictures, self._captions = _FirstSeen(), _FirstSeen()

    def add(self, batch: PairBatch, image_BE: Tensor, text_BE: Tensor) -> None:
        """Take in a batch on any device."""
        columns = (batch.pair_ids_B, batch.image_ids_B, batch.text_ids_B, batch.caption_keys_B)
        ids_B4 = torch.stack(columns, dim=1).cpu()
        counts = self._counts(ids_B4).tolist()
        self._pictures.add(ids_B4[:, 1], counts, self._num_pairs, image_BE)
        self._captions.add(ids_B4[:, 2], counts, self._num_pairs, text_BE)
        self._ids.append(ids_B4)
        self._num_pairs += len(batch)

    def distinct(self, exchange: Exchange, rank: int) -> tuple[Features, Features, RightPairs]:
        """This rank's pictures and captions, each on one rank only, and who is right for whom. Collective; once."""
        ids_P4 = exchange.gather(torch.cat(self._ids).to(exchange.device)).cpu()
        _, image_ids_P, text_ids_P, caption_keys_P = ids_P4.unbind(1)
        right = RightPairs.of(image_ids_P, text_ids_P, caption_keys_P, self._counts(ids_P4))
        first_row = rank * self._num_pairs
        pictures = self._pictures.take(right.pictures, first_row)
        return pictures, self._captions.take(right.captions, first_row), right

    def _counts(self, ids_B4: Tensor) -> Tensor:
        pair_ids_B = ids_B4[:, 0]
        if self._max_pairs is None:
            return torch.ones_like(pair_ids_B, dtype=torch.bool)
        return pair_ids_B < self._max_pairs


class _FirstSeen:
    """Features of things, of each where it came first."""

    def __init__(self) -> None:
        self._seen: set[int] = set()
        self._rows: list[Tensor] = []
        self._features: list[Tensor] = []

    def add(self, ids_B: Tensor, counts: list[bool], first_row: int, features_BE: Tensor) -> None:
        """`counts` tells which of the batch do; it begins at pair `first_row` of this rank."""
        new = []
        for place, (number, count) in enumerate(zip(ids_B.tolist(), counts, strict=True)):
            if count and number not in self._seen:
                self._seen.add(number)
                new.append(place)
        new_n = torch.tensor(new, dtype=torch.long)
        self._rows.append(new_n + first_row)
        self._features.append(features_BE[new_n.to(features_BE.device)].cpu())

    def take(self, distinct: Distinct, first_row: int) -> Features:
        """Those that no lower rank has; `first_row`: of this rank among all pairs. The features are handed over."""
        rows_n = torch.cat(self._rows) + first_row
        places_n = distinct.place_P[rows_n]
        is_own_n = distinct.first_pair_N[places_n] == rows_n
        own_nE = self._features[0].new_empty(int(is_own_n.sum()), self._features[0].shape[1])
        start, own_start = 0, 0
        self._features.reverse()
        while self._features:  # one by one, so that no second copy of all of them is ever there
            features_BE = self._features.pop()
            own = features_BE[is_own_n[start : start + len(features_BE)]]
            own_nE[own_start : own_start + len(own)] = own
            start, own_start = start + len(features_BE), own_start + len(own)
        return Features(places_n[is_own_n], own_nE)
