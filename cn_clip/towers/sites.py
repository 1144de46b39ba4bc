"""The places of a tower where something is drawn at random, and the keys of the pairs it encodes just now.

`CLIP.forward` lends the keys to a tower for one call (`Sites.lent`); each place finds its own in its `Site`. What runs later,
such as a block that is computed again in the backward pass, remembers the keys it ran under first (`Sites.remember`).
Without keys every place draws from torch's generators, as the libraries' own modules do.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

import torch
from torch import Tensor

from cn_clip.towers.pair_random import number_of, site_keys


class Site:
    """One place: a dropout, an attention, the choice of patches."""

    def __init__(self) -> None:
        self.keys_B: Tensor | None = None
        """Of the pairs that are encoded just now, already this place's own; None: torch's generators."""


class Sites:
    """All places of one tower, by name. What is drawn depends on the name, not on the order of the places."""

    def __init__(self) -> None:
        self._sites: dict[str, Site] = {}
        self._numbers_S: Tensor | None = None
        self._keys_SB: Tensor | None = None

    def add(self, name: str) -> Site:
        """A new place, or the one that has the name already."""
        self._numbers_S = None
        return self._sites.setdefault(name, Site())

    def __len__(self) -> int:
        return len(self._sites)

    def lent(self, keys_B: Tensor | None) -> AbstractContextManager[None]:
        """Inside, every place draws for the pairs of these keys."""
        return self._under(None if keys_B is None else site_keys(keys_B, self._numbers(keys_B.device)))

    def remember(self) -> AbstractContextManager[None]:
        """A context, to be entered at any later time, in which the keys are those of now."""
        return self._under(self._keys_SB)

    @contextmanager
    def _under(self, keys_SB: Tensor | None) -> Iterator[None]:
        before = self._keys_SB
        self._hand_out(keys_SB)
        try:
            yield
        finally:
            self._hand_out(before)

    def _hand_out(self, keys_SB: Tensor | None) -> None:
        self._keys_SB = keys_SB
        for index, site in enumerate(self._sites.values()):
            site.keys_B = None if keys_SB is None else keys_SB[index]

    def _numbers(self, device: torch.device) -> Tensor:
        if self._numbers_S is None or self._numbers_S.device != device:
            numbers = [number_of(name) for name in self._sites]
            self._numbers_S = torch.tensor(numbers, dtype=torch.int64, device=device)
        return self._numbers_S
