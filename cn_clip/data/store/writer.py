"""A split written whole or not at all.

It grows in a hidden folder beside the split and changes places with it at the end, so that the old split can be read
until then, and a killed build leaves only the hidden folder, which the next one clears.
"""

from __future__ import annotations

from array import array
from os import PathLike
from pathlib import Path
from types import TracebackType
from typing import get_args

import numpy as np
from numpy.typing import NDArray

from cn_clip.data.store import layout
from cn_clip.data.store.growing_table import GrowingTable
from cn_clip.data.store.replacement import Replacement
from cn_clip.errors import ConfigError


class SplitWriter:
    """Context in which the pairs and pictures of one split are added; leaving it without an error puts it in place.

    Of the rows, only 8 bytes per picture stay in memory. DataError when the disk is full or another build writes this split.
    """

    def __init__(self, path: str | PathLike[str], format: layout.Format = "v2") -> None:
        if format not in get_args(layout.Format):
            raise ConfigError(
                f"the format of a store is {' or '.join(get_args(layout.Format))}, not {format!r}"
            )
        self.format: layout.Format = format
        self._replacement = Replacement(Path(path))
        self.num_pairs = 0
        self._image_ids = array("q")

    def __enter__(self) -> SplitWriter:
        folder = self._replacement.begin()
        try:
            self._images = GrowingTable(folder / layout.IMAGES_FOLDER)
            self._pairs = GrowingTable(folder / layout.PAIRS_FOLDER)
        except BaseException:
            self._replacement.discard()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._finish()
        finally:
            self._images.close()
            self._pairs.close()
            self._replacement.discard()

    @property
    def num_images(self) -> int:
        """Pictures added; exact once the split is finished, since repeats show when they are written."""
        return len(self._image_ids) - self._images.num_repeats

    @property
    def num_repeats(self) -> int:
        """Pictures that came again with the same id and the same bytes, and were kept once."""
        return self._images.num_repeats

    def add_image(self, image_id: int, picture: bytes, source: str = "a picture") -> None:
        """Keep an encoded picture; `source` names it (file and row) if another picture has this id: a DataError."""
        self._images.put(layout.number_key(image_id), layout.encode_picture(picture, self.format), source)
        self._image_ids.append(image_id)

    def add_pair(self, image_id: int, text_id: int, caption: str) -> None:
        """Keep the next pair."""
        value = layout.encode_pair(image_id, text_id, caption, self.format)
        self._pairs.put(layout.number_key(self.num_pairs), value, "")
        self.num_pairs += 1

    def image_ids(self) -> NDArray[np.int64]:
        """Ids of the pictures added so far, sorted; DataError if two of them share one."""
        self._images.flush()
        # not asked of LMDB, where finding a key also touches its picture: one read of the disk for every id
        return np.unique(np.frombuffer(self._image_ids, np.int64))

    def _finish(self) -> None:
        self._images.flush()
        for table, kind, count in (
            (self._images, layout.IMAGES_FORMAT, self.num_images),
            (self._pairs, layout.PAIRS_FORMAT, self.num_pairs),
        ):
            if self.format == "v2":
                table.put(layout.META_KEY, layout.encode_meta(kind, count), "")
                table.put(layout.COUNT_KEYS[kind], layout.STOP_SENTENCE, "")
            else:
                table.put(layout.COUNT_KEYS[kind], b"%d" % count, "")
            table.finish()
        self._replacement.commit()
