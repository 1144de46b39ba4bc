"""Hard negatives that are asked for and nowhere in the data."""

from __future__ import annotations

from collections.abc import Sequence

from cn_clip.data.pairs import PairSource
from cn_clip.errors import DataError
from cn_clip.training.timeline import Leg

LOOKED_AT = 500
"""Pairs of a set, spread over all of it."""


def missing_negatives(legs: Sequence[Leg]) -> list[str]:
    """A sentence for a stage that asks for hard negatives of pairs that have none; a stream is not looked into."""
    found = []
    for leg in legs:
        source, asked = leg.sources.train, leg.stage.config.data.hard_negatives
        if asked == 0 or not isinstance(source, PairSource):
            continue
        places = range(0, len(source), max(1, len(source) // LOOKED_AT))
        if not any(_has_some(source, place) for place in places):
            found.append(
                f"data.hard_negatives is {asked}, which does nothing: of {len(places)} training pairs that were looked at none "
                "has hard_negatives"
            )
    return list(dict.fromkeys(found))


def _has_some(source: PairSource, place: int) -> bool:
    try:
        return bool(source.read(place, epoch=0, seed=0, picture=False).hard_negatives)
    except DataError:
        return False  # told when its turn comes
