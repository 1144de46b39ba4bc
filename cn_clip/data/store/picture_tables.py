"""The pictures of a split being written: one imgs folder after the other, and the index that knows them all."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from xxhash import xxh3_64, xxh3_128_digest

from cn_clip.data.store import layout
from cn_clip.data.store.growing_table import GrowingTable
from cn_clip.errors import DataError


class TakenIdError(DataError):
    """Another picture has the id already; the split is as it was before, and may be gone on with."""

    def __init__(self, source: str, reason: str) -> None:
        super().__init__(f"{source}: {reason}")
        self.reason = reason
        """Without the place."""


class PictureTables:
    """Goes on after the imgs folders that are `there`, with the index of their pictures if the folder has one."""

    def __init__(
        self,
        folder: Path,
        store_format: layout.Format,
        shard_bytes: int | None = None,
        there: Sequence[layout.ShardFacts] = (),
    ) -> None:
        self.num_repeats = 0
        """Pictures that came again with the same id and the same bytes, and were kept once."""
        self._folder = folder
        self._format: layout.Format = store_format
        self._shard_bytes = shard_bytes
        self._finished = list(there)
        self._shard: GrowingTable | None = None  # made when its first picture comes
        self._shard_count = 0
        # the reference has no index, but a build needs one to know an id that comes again
        self._index = GrowingTable(folder / layout.INDEX_FOLDER)

    @property
    def num_images(self) -> int:
        return sum(shard.count for shard in self._finished) + self._shard_count

    @property
    def num_shards(self) -> int:
        return len(self._finished) + (self._shard is not None)

    def add(self, image_id: int, picture: bytes, source: str, size: tuple[int, int] | None = None) -> None:
        """Keep an encoded picture of `size` (width, height) pixels; TakenIdError if another one has this id."""
        key, digest = layout.number_key(image_id), xxh3_128_digest(picture)
        if self._is_repeat(key, digest, source):
            return
        shard = self._shard_for(len(picture))
        shard.put(key, layout.encode_picture(picture, self._format))
        self._content.update(key + digest)
        self._shard_count += 1
        self._enter(key, picture, digest, len(self._finished), size)

    def enter(self, image_id: int, picture: bytes, shard: int) -> None:
        """Put into the index a picture that stands in an imgs folder already."""
        self._enter(layout.number_key(image_id), picture, xxh3_128_digest(picture), shard, None)

    def has(self, image_id: int) -> bool:
        return self._index.get(layout.number_key(image_id)) is not None

    def finish(self) -> None:
        """All folders durable; the reference's format without the index."""
        if self._shard is not None or not self._finished:
            self._finish_shard(self._shard or self._begin_shard())
        if self._format == "reference":
            self._index.close()
            shutil.rmtree(self._folder / layout.INDEX_FOLDER)
            return
        shards = [asdict(shard) for shard in self._finished]
        meta = layout.encode_meta(layout.INDEX_FORMAT, self.num_images, shards=shards)
        self._index.put(layout.META_KEY, meta)
        self._index.finish()

    def close(self) -> None:
        self._index.close()
        if self._shard is not None:
            self._shard.close()

    def _is_repeat(self, key: bytes, digest: bytes, source: str) -> bool:
        entry = self._index.get(key)
        if entry is None:
            return False
        if layout.decode_facts(entry).digest != digest:
            raise TakenIdError(
                source,
                f"id {key.decode()} was given before with other content; give every picture an id of its own",
            )
        self.num_repeats += 1
        return True

    def _enter(
        self, key: bytes, picture: bytes, digest: bytes, shard: int, size: tuple[int, int] | None
    ) -> None:
        width_px, height_px = size or (0, 0)
        facts = layout.PictureFacts(width_px, height_px, len(picture), shard, digest)
        self._index.put(key, layout.encode_facts(facts))

    def _shard_for(self, num_bytes: int) -> GrowingTable:
        """The imgs folder that this picture goes to: the next one when it would make this one too large."""
        if self._shard is None:
            return self._begin_shard()
        if self._shard_bytes is None or self._shard.num_bytes + num_bytes <= self._shard_bytes:
            return self._shard
        self._finish_shard(self._shard)
        return self._begin_shard()

    def _begin_shard(self) -> GrowingTable:
        self._content = xxh3_64()
        self._shard = GrowingTable(self._folder / layout.shard_folder(len(self._finished)))
        return self._shard

    def _finish_shard(self, table: GrowingTable) -> None:
        facts = layout.ShardFacts(self._shard_count, self._content.hexdigest())
        count_key = layout.COUNT_KEYS[layout.IMAGES_FORMAT]
        if self._format == "v2":
            number = len(self._finished)
            meta = layout.encode_meta(layout.IMAGES_FORMAT, facts.count, shard=number, content=facts.content)
            table.put(layout.META_KEY, meta)
            table.put(count_key, layout.STOP_SENTENCE)
        else:
            table.put(count_key, b"%d" % facts.count)
        table.finish()
        self._finished.append(facts)
        self._shard, self._shard_count = None, 0
