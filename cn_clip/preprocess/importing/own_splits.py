"""Flags of the sources that come with splits of their own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cn_clip.errors import ConfigError, DataError
from cn_clip.preprocess.importing.split_choice import check_split_names

OUR_NAMES = {"validation": "valid", "val": "valid"}
"""Names that published sets give their splits -> what they are imported as."""


@dataclass(frozen=True, kw_only=True)
class OwnSplits:
    """Which of them are imported."""

    splits: tuple[str, ...] = ()
    """splits to import; all that are there when not given"""

    def chosen(self, there: Sequence[str], where: Path) -> tuple[str, ...]:
        """The splits asked for, or all that are there. DataError when one is not."""
        if not there:
            raise DataError(f"{where} has none of the files of a split: is it the right folder?")
        words = [name for word in self.splits for name in word.split(",") if name] or there
        splits = tuple(name if name in there else OUR_NAMES.get(name, name) for name in words)
        check_split_names(splits, "--splits")
        missing = [name for name in splits if name not in there]
        if missing:
            raise ConfigError(f"--splits: {where} has no {missing[0]!r}; there are {', '.join(there)}")
        return splits
