"""A row of a data file that cannot be used, and the sentence it gets."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from cn_clip.errors import DataError


@dataclass(frozen=True, slots=True, kw_only=True)
class BadRow:
    """Where a row is wrong, and why."""

    path: Path
    row: int
    """Line of the file, from 1."""
    column: int | str | None
    """Column of a TSV or character of a line, from 1; or the name of a field; None when it is the row itself."""
    reason: str
    """What is wrong and what to do."""
    image_id: int | None = None
    """Of the picture that the row holds, where that much of it could be read."""
    is_unended: bool = False
    """The line has no end, as the last line of a file that was cut."""

    def __str__(self) -> str:
        unended = " (the last line, which may be cut)" if self.is_unended else ""
        return f"{self.path} row {self.row}{unended}{self._place()}: {self.reason}"

    def error(self) -> DataError:
        return DataError(str(self))

    def _place(self) -> str:
        if self.column is None:
            return ""
        kind = "field" if isinstance(self.column, str) else "column"
        # an id column is shown by its reason
        whose = f" (the picture of id {self.image_id})" if self.image_id is not None else ""
        return f", {kind} {self.column}{whose}"
