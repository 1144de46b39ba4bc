"""What becomes of bad rows: the first one ends the build, or they are left out and written down."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import BinaryIO, Literal

from cn_clip.data.bad_rows import BadRow
from cn_clip.errors import DataError

Policy = Literal["stop", "skip"]

ROWS_BEFORE_A_SHARE = 10_000
"""A share of fewer rows says little; it is looked at when the file is read."""


class BadRowLog:
    """The bad rows of one split; `{split}.bad_rows.jsonl` has them all when the policy is to skip them."""

    def __init__(self, lmdb_dir: Path, split: str, policy: Policy, max_share: float) -> None:
        self.path = lmdb_dir / f"{split}.bad_rows.jsonl"
        self.image_ids: set[int] = set()
        """Of pictures that were left out, as far as their ids could be read."""
        self.policy = policy
        self._max_share = max_share
        self.num_left_out = 0
        """Rows of which nothing was kept."""
        self._counts: Counter[Path] = Counter()
        self._first: BadRow | None = None
        # one name, so that the next build replaces what a killed one left; nobody else builds this split meanwhile
        self._partial = lmdb_dir / f".{split}.bad_rows.jsonl.partial"
        self._file: BinaryIO | None = None

    @property
    def num_rows(self) -> int:
        """Rows in the list."""
        return self._counts.total()

    def add(self, bad: BadRow, *, is_left_out: bool = True) -> None:
        """Write a row down that is left out, or of which something is; DataError when none may be bad."""
        if self.policy == "stop":
            raise bad.error()
        self._first = self._first or bad
        self._counts[bad.path] += 1
        self.num_left_out += is_left_out
        if bad.image_id is not None:
            self.image_ids.add(bad.image_id)
        if self._file is None:
            self._file = self._partial.open("wb")
        row = {"file": str(bad.path), "row": bad.row, "column": bad.column, "reason": bad.reason}
        self._file.write(json.dumps(row, ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n")

    def check_share(self, path: Path, num_rows: int, *, is_whole: bool) -> None:
        """DataError when more of the rows of a file are bad than may be; `num_rows` of it were read so far."""
        num_bad = self._counts[path]
        if num_bad <= self._max_share * num_rows or not (is_whole or num_rows >= ROWS_BEFORE_A_SHARE):
            return
        self.publish()
        raise DataError(
            f"{path}: {num_bad} of {num_rows} rows are bad, which is more than --max-bad-share {self._max_share:g}; "
            f"the first is {self._first}; {self.path} has them all"
        )

    def publish(self) -> None:
        """Put the file in place; without bad rows, take away that of an earlier build."""
        if self._file is None:
            self.path.unlink(missing_ok=True)
            return
        self._file.close()
        self._partial.replace(self.path)
        self._file = None

    def close(self) -> None:
        """Clear what was not published."""
        if self._file is not None:
            self._file.close()
            self._file = None
        self._partial.unlink(missing_ok=True)
