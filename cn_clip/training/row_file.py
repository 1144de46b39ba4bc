"""JSONL files of a run: rows of steps, cut back to the checkpoint where a run goes on, so that each step has its rows once.

A row has left the process when `write` returns: a run that is killed loses none. Before a checkpoint of a step is begun its
rows are written, so a run that goes on after that step finds all rows up to it, and comes to the later ones again.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cn_clip.files import write_atomically

Row = Mapping[str, Any]
"""Plain JSON values by name, `step` among them."""


class RowFile:
    """A file of rows, opened to go on after a step."""

    def __init__(self, path: Path, first_step: int) -> None:
        """Rows after `first_step`, and one that was half-written, are taken out."""
        self.kept = _cut_back(path, first_step)
        """Rows that the file has from before."""
        self._file = path.open("a", encoding="utf-8")

    def write(self, row: Row) -> None:
        """Numbers that are none become null: JSON has no nan."""
        self._file.write(json.dumps({name: _plain(value) for name, value in row.items()}) + "\n")
        self._file.flush()

    def sync(self) -> None:
        """Wait until the rows would survive a machine that dies, too."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()


def read_rows(path: Path) -> list[dict[str, Any]]:  # Any: JSON values
    """Rows of a file in order, without one that is half-written; none where there is no file."""
    if not path.exists():
        return []
    # bytes that are no text spoil their own line only
    rows = (_row(line) for line in path.read_text(encoding="utf-8", errors="replace").splitlines())
    return [row for row in rows if row is not None]


def _cut_back(path: Path, first_step: int) -> list[dict[str, Any]]:  # Any: JSON values
    rows = read_rows(path)
    kept = [row for row in rows if row["step"] <= first_step]
    if path.exists() and path.stat().st_size:
        write_atomically(path, "".join(json.dumps(row) + "\n" for row in kept).encode())
    return kept


def _row(line: str) -> dict[str, Any] | None:  # Any: JSON values
    try:
        row = json.loads(line)
    except ValueError:
        return None  # the last line of a killed run
    return row if isinstance(row, dict) and isinstance(row.get("step"), int) else None


def _plain(value: object) -> object:
    return None if isinstance(value, float) and not math.isfinite(value) else value
