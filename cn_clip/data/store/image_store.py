"""Pictures of a split by id, in both formats of `layout`: from one imgs folder or many, checked where there is an index."""

from __future__ import annotations

from collections.abc import Iterator
from os import PathLike
from pathlib import Path

from xxhash import xxh3_128_digest

from cn_clip.data.store import layout
from cn_clip.data.store.layout import PictureFacts, ShardFacts
from cn_clip.data.store.lmdb_folder import REBUILD
from cn_clip.data.store.picture_folders import Shard, find_index, open_shards, refuse_other_shards
from cn_clip.errors import DataError


class ImageStore:
    """The encoded pictures of `{split}/imgs`, of the folders that go on with it, and their index. Picklable."""

    def __init__(self, path: str | PathLike[str]) -> None:
        self.path = Path(
            path
        ).absolute()  # its name and what lies beside it count, wherever the process stands
        self._index = find_index(self.path)
        if self._index is not None:
            self._shards = open_shards(self.path.parent, self._index.shards)
        else:
            self._shards = [Shard(self.path)]
            if self.path.name == layout.IMAGES_FOLDER:
                refuse_other_shards(self.path.parent, num_shards=1)

    def __len__(self) -> int:
        return sum(map(len, self._shards))

    @property
    def version(self) -> int:
        """Of the format: 1 is the reference's."""
        return self._shards[0].version

    @property
    def num_shards(self) -> int:
        return len(self._shards)

    @property
    def shards(self) -> list[ShardFacts]:
        return [shard.facts for shard in self._shards]

    @property
    def has_index(self) -> bool:
        return self._index is not None

    def read(self, image_id: int) -> bytes:
        """The picture as it came (JPEG, PNG, …); DataError names the id when it is missing or damaged."""
        if self._index is not None:
            return self._read_checked(image_id, self._index.facts(image_id))
        picture = self._shards[0].read(image_id)
        if picture is None:
            raise self._missing(image_id)
        return picture

    def facts(self, image_id: int) -> PictureFacts | None:
        """What the index knows of this picture; None without an index or such a picture."""
        return self._index.facts(image_id) if self._index is not None else None

    def ids(self) -> list[int]:
        """Every image id in key order, which is that of their decimal strings: 1, 10, 2."""
        return list(self.walk_ids())

    def walk_ids(self) -> Iterator[int]:
        """The ids one by one, for stores too large for a list of them."""
        return (self._index or self._shards[0]).walk_ids()

    def _read_checked(self, image_id: int, facts: PictureFacts | None) -> bytes:
        if facts is None:
            raise self._missing(image_id)
        shard = self._shards[facts.shard]
        picture = shard.read_sized(image_id, facts.num_bytes)
        if picture is None or xxh3_128_digest(picture) != facts.digest:
            raise DataError(f"picture {image_id} of {shard.path} is damaged: {REBUILD}")
        return picture

    def _missing(self, image_id: int) -> DataError:
        return DataError(
            f"{self.path} has no picture with id {image_id}: add it to the split's _imgs.tsv and {REBUILD}"
        )
