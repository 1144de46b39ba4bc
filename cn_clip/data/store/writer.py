"""A split written whole or not at all.

It grows in a hidden folder beside the split and changes places with it at the end, so that the old split can be read
until then, and a killed build leaves only the hidden folder, which the next one clears.
"""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from types import TracebackType
from typing import get_args

from cn_clip.data.store import layout
from cn_clip.data.store.appending import carry_over, open_old
from cn_clip.data.store.growing_table import keep_freed_memory
from cn_clip.data.store.pair_tables import PairTables
from cn_clip.data.store.picture_tables import PictureTables
from cn_clip.data.store.replacement import Replacement
from cn_clip.errors import ConfigError


class SplitWriter:
    """Context in which the pairs and pictures of one split are added; leaving it without an error puts it in place.

    Nothing is held in memory per row. DataError when the disk is full or another build writes this split.
    """

    def __init__(
        self,
        path: str | PathLike[str],
        format: layout.Format = "v2",
        *,
        shard_bytes: int | None = None,
        append: bool = False,
        tokenizer: str | None = None,
    ) -> None:
        """
        shard_bytes: an imgs folder stays below this, and the next one begins; None is one folder.
        append: go on after the split that is there, which must be one of this format.
        tokenizer: fingerprint of the tokenizer whose ids `add_pair` gets; None, or the reference's format, keeps none.
        """
        if format not in get_args(layout.Format):
            raise ConfigError(
                f"the format of a store is {' or '.join(get_args(layout.Format))}, not {format!r}"
            )
        if shard_bytes is not None and (shard_bytes <= 0 or format == "reference"):
            raise ConfigError(
                f"pictures cannot be cut into folders of {shard_bytes} bytes in format {format}: "
                "give a positive size with format v2, or none"
            )
        self.format: layout.Format = format
        self._shard_bytes = shard_bytes
        self._append = append
        self._tokenizer = tokenizer if format == "v2" else None
        self._replacement = Replacement(Path(path))

    def check(self) -> None:
        """DataError when there is no split to go on after; nothing is made, so that several can be asked first."""
        if self._append and not self._replacement.is_half_done:
            open_old(self._replacement.target, self.format)

    def __enter__(self) -> SplitWriter:
        self.check()
        folder = self._replacement.begin()
        try:
            self._pictures, self._pairs = self._begin_tables(folder)
        except BaseException:
            self._replacement.discard()
            raise
        self._is_committed = False
        keep_freed_memory()
        self.num_old_images = self._pictures.num_images
        self.num_old_pairs = self._pairs.num_pairs
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None and not self._is_committed:
                self.commit()
        finally:
            self._pictures.close()
            self._pairs.close()
            self._replacement.discard()

    @property
    def num_images(self) -> int:
        """Pictures of the whole split so far, each id once."""
        return self._pictures.num_images

    @property
    def num_shards(self) -> int:
        """Folders that the pictures of the whole split lie in so far."""
        return self._pictures.num_shards

    @property
    def num_pairs(self) -> int:
        """Pairs of the whole split so far."""
        return self._pairs.num_pairs

    @property
    def num_repeats(self) -> int:
        """Pictures that came again with the same id and the same bytes, and were kept once."""
        return self._pictures.num_repeats

    @property
    def tokenizer(self) -> str | None:
        """Whose tokens the split will have; None when it has none, as after a split without those of all its captions."""
        return self._pairs.tokenizer

    def add_image(
        self,
        image_id: int,
        picture: bytes,
        source: str = "a picture",
        *,
        size: tuple[int, int] | None = None,
    ) -> None:
        """Keep an encoded picture, of `size` (width, height) pixels.

        `source` names it (file and row) if another picture has this id: a TakenIdError, after which more can be added.
        """
        self._pictures.add(image_id, picture, source, size)

    def add_pair(
        self,
        image_id: int,
        text_id: int,
        caption: str,
        token_ids: Sequence[int] | None = None,
        hard_negatives: Sequence[str] = (),
    ) -> None:
        """Keep the next pair; `token_ids` of the whole caption, without [CLS] and [SEP], where `tokenizer` is one."""
        self._pairs.add(image_id, text_id, caption, token_ids, hard_negatives)

    def has_image(self, image_id: int) -> bool:
        """Whether the split has this picture so far."""
        return self._pictures.has(image_id)

    def commit(self) -> None:
        """Put the split in place now: what belongs to it can be done before the context lets other builds come.

        Nothing can be added after it.
        """
        self._pictures.finish()
        self._pairs.finish()
        self._replacement.commit()
        self._is_committed = True

    def _begin_tables(self, folder: Path) -> tuple[PictureTables, PairTables]:
        if self._append:
            old = self._replacement.target
            return carry_over(old, folder, self.format, self._shard_bytes, self._tokenizer)
        pictures = PictureTables(folder, self.format, self._shard_bytes)
        try:
            return pictures, PairTables(folder, self.format, self._tokenizer)
        except BaseException:
            pictures.close()
            raise
