"""Which split a picture goes to: a pure function of the picture, so that more pictures move none of the old ones."""

from __future__ import annotations

import posixpath
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import xxhash

from cn_clip.errors import ConfigError

_STEPS = 2**64


@dataclass(frozen=True, kw_only=True)
class SplitChoice:
    """Flags of the sources that have no splits of their own."""

    split: str = "train"
    """name of the split that is written"""
    valid_share: float = 0.0
    """share of the pictures, with all their captions, that is held out, 0 to below 1"""
    valid_split: str = "valid"
    """name of the split that is held out"""
    split_by: Literal["name", "content", "folder"] = "name"
    """what decides which pictures are held out: their names, their bytes (the same picture under two names stays together), or the folders they lie in (which stay whole)"""

    def names(self) -> tuple[str, ...]:
        """The splits that are written; ConfigError when one cannot be."""
        if not 0 <= self.valid_share < 1:
            raise ConfigError(f"--valid-share is {self.valid_share}; give 0 or more, below 1")
        check_split_names((self.split,), "--split")
        if not self.valid_share:
            return (self.split,)
        check_split_names((self.valid_split, self.split), "--valid-split")
        return (self.split, self.valid_split)

    def of(self, name: str, digest: bytes) -> str:
        """The split of a picture of this name (with slashes between folders) and this digest of its bytes."""
        if not self.valid_share:
            return self.split
        match self.split_by:
            case "name":
                key = name.encode("utf-8", "surrogatepass")
            case "folder":
                key = posixpath.dirname(name).encode("utf-8", "surrogatepass")
            case "content":
                key = digest
        held_out = xxhash.xxh3_64_intdigest(key) < self.valid_share * _STEPS
        return self.valid_split if held_out else self.split


def check_split_names(names: tuple[str, ...], flag: str) -> None:
    """ConfigError for names that cannot begin file names, or that stand twice."""
    for name in names:
        if not name or name != Path(name).name or name.startswith("."):
            raise ConfigError(f"{flag}: {name!r} cannot name a split; give for example train")
    if len(set(names)) < len(names):
        raise ConfigError(f"{flag}: {names[0]!r} is named twice; give every split a name of its own")
