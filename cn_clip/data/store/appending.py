"""A split's old rows in the new folder of one that goes on after them.

Imgs folders are linked, so that their bytes are neither copied nor held twice; the others are copied, since they get
more rows while somebody may still read the old ones.
"""

from __future__ import annotations

import logging
import os
import shutil
from contextlib import ExitStack, closing
from pathlib import Path

from cn_clip.data.store import layout
from cn_clip.data.store.growing_table import write_error
from cn_clip.data.store.image_store import ImageStore
from cn_clip.data.store.pair_tables import PairsThere, PairTables
from cn_clip.data.store.picture_tables import PictureTables
from cn_clip.data.store.readers import Split, open_split
from cn_clip.errors import DataError

log = logging.getLogger(__name__)


def open_old(path: Path, store_format: layout.Format) -> Split:
    """The split to go on after; DataError when none is there, or one of the other format.

    That one would lose tokens and index on its way to the reference's format, and its readers on its way from it.
    """
    if not any((path / name).is_dir() for name in (layout.PAIRS_FOLDER, layout.IMAGES_FOLDER)):
        raise DataError(
            f"there is no split {path} to add to: leave out --append to build one, or give the --lmdb_dir that has it"
        )
    split = open_split(path)
    there = {_format_of(split.pairs.version), _format_of(split.images.version)}
    if there != {store_format}:
        other = min(there - {store_format})
        raise DataError(
            f"{path} has format {other}, not {store_format}: give --format {other}, "
            "or build it anew from all its rows, without --append"
        )
    return split


def _format_of(version: int) -> layout.Format:
    return "v2" if version == layout.VERSION else "reference"


def carry_over(
    old: Path, new: Path, store_format: layout.Format, shard_bytes: int | None, tokenizer: str | None
) -> tuple[PictureTables, PairTables]:
    """The tables of `new` with all rows of the split `old` in them; what a split of another age lacks is made."""
    split = open_old(old, store_format)
    with ExitStack() as on_error:
        pictures = on_error.enter_context(
            closing(_begin_pictures(split.images, new, store_format, shard_bytes))
        )
        _carry_pictures(split.images, pictures)
        tokenizer = _kept_tokenizer(split, old, tokenizer)
        pairs = on_error.enter_context(closing(_begin_pairs(split, new, store_format, tokenizer)))
        if pairs.num_pairs < len(split.pairs):
            _add_pairs(split, pairs)
        on_error.pop_all()
    return pictures, pairs


def _begin_pictures(
    images: ImageStore, new: Path, store_format: layout.Format, shard_bytes: int | None
) -> PictureTables:
    """With the imgs folders and the index that can be used as they are."""
    if store_format != "v2":
        return PictureTables(new, store_format, shard_bytes)
    for shard in range(images.num_shards):
        name = layout.shard_folder(shard)
        _link(images.path.parent / name, new / name)
    if images.has_index:
        _copy(images.path.parent / layout.INDEX_FOLDER, new / layout.INDEX_FOLDER)
    return PictureTables(new, store_format, shard_bytes, images.shards)


def _carry_pictures(images: ImageStore, tables: PictureTables) -> None:
    """What is still missing of the old pictures: all of them, only their entries in the index, or nothing."""
    if tables.num_images < len(images):
        log.info(
            "%s: copying its %d pictures, which have one folder in this format", images.path, len(images)
        )
        for image_id in images.walk_ids():
            tables.add(image_id, images.read(image_id), f"{images.path} id {image_id}")
    elif not images.has_index:
        log.info("%s: making the index of its %d pictures", images.path, len(images))
        for image_id in images.walk_ids():
            tables.enter(image_id, images.read(image_id), shard=0)


def _begin_pairs(split: Split, new: Path, store_format: layout.Format, tokenizer: str | None) -> PairTables:
    """With the pairs, and their tokens, if they can be used as they are."""
    pairs = split.pairs
    if store_format != "v2" or pairs.content is None or pairs.columns_rows != layout.COLUMNS_ROWS:
        return PairTables(new, store_format, tokenizer)
    _copy(pairs.path, new / layout.PAIRS_FOLDER)
    if tokenizer is not None and split.tokens is not None:
        _copy(split.tokens.path, new / layout.TOKENS_FOLDER)
    return PairTables(new, store_format, tokenizer, PairsThere(len(pairs), pairs.content))


def _add_pairs(split: Split, tables: PairTables) -> None:
    for index in range(len(split.pairs)):
        pair = split.pairs.read(index)
        tokens = split.tokens.read(index).tolist() if split.tokens is not None else None
        tables.add(pair.image_id, pair.text_id, pair.caption, tokens, pair.hard_negatives)


def _kept_tokenizer(split: Split, old: Path, tokenizer: str | None) -> str | None:
    """The tokenizer if every pair of the new split will have its tokens."""
    there = split.tokens.tokenizer if split.tokens is not None else None
    if there == tokenizer or len(split.pairs) == 0:
        return tokenizer
    if there is None:
        why = "has no tokens"
    elif tokenizer is None:
        why = "has tokens, the new captions have none"
    else:
        why = "has tokens of another tokenizer"
    log.warning("%s %s: the longer split has none, and its captions are tokenised while training", old, why)
    return None


def _link(old: Path, new: Path) -> None:
    """The same file under another name; a copy where the file system has no such thing."""
    try:
        new.mkdir()
        os.link((old / "data.mdb").resolve(), new / "data.mdb")
    except OSError:
        _copy(old, new)


def _copy(old: Path, new: Path) -> None:
    try:
        new.mkdir(exist_ok=True)
        shutil.copyfile(old / "data.mdb", new / "data.mdb")
        with (new / "data.mdb").open("rb+") as file:
            os.fsync(file.fileno())
    except OSError as error:
        raise write_error(new, error) from error
