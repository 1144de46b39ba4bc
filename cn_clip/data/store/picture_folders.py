"""The folders that the pictures of a split lie in, and the index of them: what `ImageStore` is made of."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from cn_clip.data.captions import MAX_ID
from cn_clip.data.store import layout
from cn_clip.data.store.layout import PictureFacts, ShardFacts
from cn_clip.data.store.lmdb_folder import REBUILD
from cn_clip.data.store.store_folder import StoreFolder, read_count
from cn_clip.errors import DataError


class _ByImageId(StoreFolder):
    """A folder whose keys are image ids, those of its meta and count aside."""

    def walk_ids(self) -> Iterator[int]:
        """Every image id in key order; DataError at the end when they are not as many as the folder counts."""
        names = (layout.META_KEY, layout.COUNT_KEYS[layout.IMAGES_FORMAT])
        num_ids = 0
        for key in self._folder.walk_keys():
            if key not in names:
                num_ids += 1
                yield self._read_id(key)
        if num_ids != len(self):
            raise DataError(f"{self.path} is damaged ({num_ids} of its {len(self)} ids are left): {REBUILD}")

    def _read_id(self, key: bytes) -> int:
        try:
            image_id = int(key)
            if abs(image_id) > MAX_ID:
                raise ValueError("too large")
        except ValueError as error:
            shown = key[:40].decode("utf-8", "replace")
            raise DataError(
                f"{self.path} holds a picture whose id {shown!r} is not a whole number of 64 bits: "
                f"number the pictures and {REBUILD}"
            ) from error
        return image_id


class Shard(_ByImageId):
    """One imgs folder."""

    kind = layout.IMAGES_FORMAT

    @property
    def facts(self) -> ShardFacts:
        return ShardFacts(len(self), self.content)

    def read(self, image_id: int) -> bytes | None:
        """The encoded picture; None when it is not here."""
        value = self._folder.get(layout.number_key(image_id))
        if value is None or self.version == layout.VERSION:
            return value
        try:
            return layout.decode_reference_picture(value)
        except ValueError as error:
            raise DataError(
                f"picture {image_id} of {self.path} is not base64 ({error}): {REBUILD}"
            ) from error

    def read_sized(self, image_id: int, num_bytes: int) -> bytes | None:
        """The encoded picture of format 2, if it is here and has this length."""
        return self._folder.get_sized(layout.number_key(image_id), num_bytes)


class PictureIndex(_ByImageId):
    """The index folder: where each picture lies and what its bytes must be."""

    kind = layout.INDEX_FORMAT

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.shards = self._read_shards()

    def facts(self, image_id: int) -> PictureFacts | None:
        value = self._folder.get(layout.number_key(image_id))
        if value is None:
            return None
        try:
            facts = layout.decode_facts(value)
            if facts.shard >= len(self.shards):
                raise ValueError(f"it names imgs folder {facts.shard} of {len(self.shards)}")
        except ValueError as error:
            raise DataError(
                f"picture {image_id} of {self.path} cannot be read ({error}): {REBUILD}"
            ) from error
        return facts

    def _read_shards(self) -> tuple[ShardFacts, ...]:
        listed = self.meta.fields.get("shards")
        try:
            if not isinstance(listed, list):
                raise TypeError("no list")
            shards = tuple(ShardFacts(read_count(shard["count"]), shard["content"]) for shard in listed)
            if not shards or sum(shard.count for shard in shards) != len(self):
                raise ValueError("counts that do not add up")
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f"{self.path} has a `meta` that cannot be read: {REBUILD}") from error
        return shards


def find_index(images: Path) -> PictureIndex | None:
    """The index beside this imgs folder, if it has one; DataError for a folder that only goes on with it."""
    path = images.parent / layout.INDEX_FOLDER
    if not path.is_dir() or not layout.is_shard_folder(images.name):
        return None
    if images.name != layout.IMAGES_FOLDER:
        raise DataError(
            f"{images} has only some of the split's pictures: give {images.parent / layout.IMAGES_FOLDER}, which stands for all"
        )
    return PictureIndex(path)


def open_shards(split: Path, shards: tuple[ShardFacts, ...]) -> list[Shard]:
    """All imgs folders that the index lists, each the one it lists; DataError names the first that is not."""
    for shard in range(len(shards)):
        name = layout.shard_folder(shard)
        if not (split / name).is_dir():
            raise DataError(
                f"{split / name} does not exist, though {layout.INDEX_FOLDER}/ lists {len(shards)} folders of pictures: "
                f"copy the split whole or {REBUILD}"
            )
    refuse_other_shards(split, len(shards))
    opened = [Shard(split / layout.shard_folder(shard)) for shard in range(len(shards))]
    for there, listed in zip(opened, shards, strict=True):
        if there.facts != listed:
            raise DataError(
                f"{there.path} is not the folder that {split / layout.INDEX_FOLDER} lists ({there.facts.count} pictures, "
                f"listed {listed.count}): they may be swapped or of two builds; copy the split whole or {REBUILD}"
            )
    return opened


def refuse_other_shards(split: Path, num_shards: int) -> None:
    """DataError when an imgs folder is there that would not be read."""
    listed = {layout.shard_folder(shard) for shard in range(num_shards)}
    others = sorted(
        child.name
        for child in split.iterdir()
        if layout.is_shard_folder(child.name) and child.name not in listed
    )
    if others:
        raise DataError(
            f"{split} holds {others[0]}/, which no {layout.INDEX_FOLDER}/ lists: the folders may be of two builds; "
            f"copy the split whole or {REBUILD}"
        )
