"""Pictures and captions with their features: recall both ways, and a few queries with what they find.

Shapes: Q captions, G pictures, E embedding.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from cn_clip.data.captions import read_captions
from cn_clip.errors import DataError
from cn_clip.eval.features.files import read_features
from cn_clip.eval.report.facts import Recalls
from cn_clip.eval.retrieval.search import top_k
from cn_clip.metrics.recall import chance_recall, recall_at_k

_KS = (1, 5, 10)


@dataclass(frozen=True)
class Found:
    """A picture that a query found."""

    image_id: int
    rank: int
    """From 1."""
    is_right: bool


@dataclass(frozen=True)
class Query:
    """A caption and the pictures it found."""

    caption: str
    found: list[Found]
    """Best first."""
    first_right: Found
    """Its best right picture, which may be far behind those in `found`."""


@dataclass(frozen=True)
class Gallery:
    captions: list[str]
    answers: list[frozenset[int]]
    """Right image ids of each caption."""
    texts_QE: Tensor
    image_ids: list[int]
    images_GE: Tensor

    def recalls(self) -> tuple[Recalls, Recalls]:
        """Text to image, image to text; a caption without a right picture is a miss, a picture without a caption is left out."""
        return self._recalls_of(self._by_caption()), self._recalls_of(self._by_picture(), turned=True)

    def chances(self) -> tuple[Recalls, Recalls]:
        """What random rankings reach, likewise."""
        sizes = (len(self.image_ids), len(self.captions))
        return tuple(  # type: ignore[return-value]  # mypy does not count a generator's items
            Recalls(*(chance_recall([len(places) for places in right.values()], size, k) for k in _KS))
            for right, size in zip((self._by_caption(), self._by_picture()), sizes, strict=True)
        )

    def draw(self, num_queries: int, num_found: int, seed: int) -> list[Query]:
        """Different captions at random, each with the best pictures."""
        chosen: dict[str, int] = {}
        places = [place for place, right in self._by_caption().items() if right]
        random.Random(seed).shuffle(places)
        for place in places:
            if len(chosen) < num_queries:
                chosen.setdefault(self.captions[place], place)
        found = top_k(self.texts_QE[list(chosen.values())], self.images_GE, num_found).tolist()
        return [self._query(place, row) for place, row in zip(chosen.values(), found, strict=True)]

    def _query(self, place: int, found: Sequence[int]) -> Query:
        right = self.answers[place]
        shown = [
            Found(self.image_ids[image], rank, self.image_ids[image] in right)
            for rank, image in enumerate(found, start=1)
        ]
        first = next((one for one in shown if one.is_right), None)
        return Query(self.captions[place], shown, first or self._first_right(place))

    def _first_right(self, place: int) -> Found:
        """The best right picture of a caption and its rank, ties counted in file order."""
        scores_G = (self.images_GE.double() @ self.texts_QE[place].double()).float()  # as the search scores
        right = [g for g, image_id in enumerate(self.image_ids) if image_id in self.answers[place]]
        best = max(right, key=lambda g: (float(scores_G[g]), -g))
        before = int((scores_G > scores_G[best]).sum()) + int((scores_G[:best] == scores_G[best]).sum())
        return Found(self.image_ids[best], before + 1, True)

    def _by_caption(self) -> dict[int, list[int]]:
        """Places of the right pictures, by place of the caption."""
        place_of = {image_id: place for place, image_id in enumerate(self.image_ids)}
        return {
            place: [place_of[image_id] for image_id in ids if image_id in place_of]
            for place, ids in enumerate(self.answers)
        }

    def _by_picture(self) -> dict[int, list[int]]:
        """Places of the right captions, by place of the picture."""
        right = defaultdict(list)
        for caption, pictures in self._by_caption().items():
            for picture in pictures:
                right[picture].append(caption)
        return dict(right)

    def _recalls_of(self, right: dict[int, list[int]], turned: bool = False) -> Recalls:
        query, gallery = (self.images_GE, self.texts_QE) if turned else (self.texts_QE, self.images_GE)
        found = top_k(query[list(right)], gallery, max(_KS)).tolist()
        return Recalls(*recall_at_k(found, list(right.values()), _KS).values())


def read_gallery(captions_path: Path, text_features: Path, image_features: Path) -> Gallery:
    """Captions of a file with their features, in the order of the feature file."""
    captions = {caption.text_id: caption for caption in read_captions(captions_path)}
    text_ids, texts_QE = read_features(text_features, "text_id")
    image_ids, images_GE = read_features(image_features, "image_id")
    missing = [text_id for text_id in text_ids if text_id not in captions]
    if missing:
        raise DataError(
            f"{captions_path} has no text_id {missing[0]}, which {text_features} has: give its captions"
        )
    if texts_QE.shape[1] != images_GE.shape[1]:
        raise DataError(
            f"{text_features} has features of {texts_QE.shape[1]} numbers and {image_features} of "
            f"{images_GE.shape[1]}: extract both with the same model"
        )
    known = frozenset(image_ids)
    if not any(known.intersection(caption.image_ids) for caption in captions.values()):
        raise DataError(
            f"no caption of {captions_path} names a picture of {image_features}: they are of two splits"
        )
    return Gallery(
        captions=[captions[text_id].text for text_id in text_ids],
        answers=[frozenset(captions[text_id].image_ids) for text_id in text_ids],
        texts_QE=texts_QE,
        image_ids=image_ids,
        images_GE=images_GE,
    )
