"""A split opened: its pairs, its pictures, and the tokens of its captions if it has them."""

from __future__ import annotations

from dataclasses import dataclass
from os import PathLike
from pathlib import Path

from cn_clip.data.store import layout
from cn_clip.data.store.image_store import ImageStore
from cn_clip.data.store.lmdb_folder import REBUILD
from cn_clip.data.store.pair_store import PairStore
from cn_clip.data.store.token_store import TokenStore
from cn_clip.data.store.wrong_folder import next_step
from cn_clip.errors import DataError


@dataclass(frozen=True)
class Split:
    """Pairs and pictures of one split."""

    pairs: PairStore
    images: ImageStore
    tokens: TokenStore | None


def open_split(path: str | PathLike[str]) -> Split:
    """The split in this folder, of either format; DataError says what is missing and how to get it."""
    folder = Path(path)
    if not folder.is_dir():
        raise DataError(f"{folder} is not a folder: {next_step(folder)}")
    missing = [name for name in (layout.PAIRS_FOLDER, layout.IMAGES_FOLDER) if not (folder / name).is_dir()]
    if missing:
        raise DataError(
            f"{folder} has no {' and no '.join(f'{name}/' for name in missing)} folder: {next_step(folder)}"
        )
    pairs = PairStore(folder / layout.PAIRS_FOLDER)
    return Split(pairs, ImageStore(folder / layout.IMAGES_FOLDER), _open_tokens(folder, pairs))


def _open_tokens(folder: Path, pairs: PairStore) -> TokenStore | None:
    path = folder / layout.TOKENS_FOLDER
    if not path.is_dir():
        return None
    tokens = TokenStore(path)
    if tokens.meta.text("pairs") != pairs.content or len(tokens) != len(pairs):
        raise DataError(
            f"{path} was not made from the captions in {pairs.path}: they may be of two builds; "
            f"copy the split whole or {REBUILD}"
        )
    return tokens
