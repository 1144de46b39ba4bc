"""Pairs of an LMDB split, ours or the reference's."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cn_clip.clip.tokenizer import tokenizer_fingerprint
from cn_clip.data.store import PairColumns, open_split
from cn_clip.data.store.layout import VERSION
from cn_clip.errors import DataError
from cn_clip.preprocess.inspection.sources import RawCaption, RawPicture, Stretch, Unusable

_PAIRS = 4_096  # of one stretch
_PICTURES = 64


class LmdbSource:
    caption_unit = " captions"
    picture_unit = " pictures"

    def __init__(self, path: Path) -> None:
        self.path = path
        self.name = path.resolve().name
        self._split = open_split(path)
        current = self._split.pairs.version == self._split.images.version == VERSION
        self.kind = "LMDB" if current else "LMDB of cn-clip 1.x"
        tokens = self._split.tokens
        is_ours = tokens is not None and tokens.tokenizer == tokenizer_fingerprint()
        self._tokens = tokens if is_ours else None

    def num_pairs_by_number(self) -> int | None:
        return len(self._split.pairs)

    def caption_stretches(self, chosen: NDArray[np.int64] | None) -> Sequence[Stretch]:
        numbers = np.arange(len(self._split.pairs)) if chosen is None else chosen
        return _cut(numbers, _PAIRS)

    def picture_stretches(self, wanted: NDArray[np.int64] | None) -> Sequence[Stretch]:
        # in the order of the store, which is that of the disk
        ids = np.fromiter(self._split.images.walk_ids(), np.int64)
        if wanted is not None:
            ids = ids[np.isin(ids, wanted)]
        return _cut(ids, _PICTURES)

    def captions(self, stretch: Stretch) -> Iterator[RawCaption | Unusable]:
        assert stretch.chosen is not None
        before = None
        for number in stretch.chosen.tolist():
            try:
                pair = self._split.pairs.read(number)
                tokens = None if self._tokens is None else self._tokens.read(number)
            except DataError as error:
                yield Unusable(number, str(error))
                continue
            text = (pair.text_id, pair.caption)
            yield RawCaption(number, *text, (pair.image_id,), text == before, tokens)
            before = text

    def pictures(self, stretch: Stretch) -> Iterator[RawPicture | Unusable]:
        assert stretch.chosen is not None
        for image_id in stretch.chosen.tolist():
            try:
                picture = self._split.images.read(image_id)
            except DataError as error:
                yield Unusable(0, str(error), image_id)
            else:
                yield RawPicture(0, image_id, picture)

    def caption(self, place: int) -> str:
        return self._split.pairs.read(place).caption

    def picture(self, place: int, image_id: int) -> bytes:
        return self._split.images.read(image_id)

    def name_caption(self, place: int) -> str:
        return f"pair {place}"

    def name_picture(self, place: int, image_id: int | None) -> str:
        return f"picture {image_id}"

    def columns(self) -> PairColumns | None:
        return self._split.pairs.columns()

    def why_rebuild(self) -> str | None:
        if self.kind != "LMDB":
            return "it has the format of cn-clip 1.x: base64 takes a third more space, and damage on the disk goes unseen"
        if not self._split.images.has_index:
            return "it has no index of its pictures, so damage on the disk goes unseen"
        if self._split.tokens is not None and self._tokens is None:
            return "its cached tokens are of another tokenizer, so training tokenizes every caption again"
        return None


def _cut(numbers: NDArray[np.int64], size: int) -> list[Stretch]:
    parts = [numbers[start : start + size] for start in range(0, len(numbers), size)]
    return [Stretch(0, 0, part, len(part)) for part in parts]
