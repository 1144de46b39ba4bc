"""A large file of lines, cut into blocks of whole lines."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from cn_clip.data.table_format import BOM, MAX_ROW_BYTES
from cn_clip.errors import DataError

_BLOCK_BYTES = 2 << 20


@dataclass(frozen=True, slots=True)
class LineBlock:
    """Some lines of a file."""

    path: Path
    content: bytes
    """With line ends; a byte order mark at the beginning of the file is left out."""
    first_row: int
    """Number of its first line in the file, from 1."""
    line_ends: list[int]
    """Where each line ends in `content`, before its line end."""
    num_bytes: int
    """Of the file that it stands for."""


def read_blocks(path: Path) -> Iterator[LineBlock]:
    """Blocks of some megabytes, or of one line where that is longer. DataError when a line is longer than any row may be."""
    first_row = 1
    try:
        with path.open("rb") as file:
            while content := file.read(_BLOCK_BYTES):
                if not content.endswith(b"\n"):
                    content += file.readline(MAX_ROW_BYTES + 1)
                num_bytes = len(content)
                if first_row == 1:
                    content = content.removeprefix(BOM)
                line_ends = _find_line_ends(content)
                if len(content) - content.rfind(b"\n", 0, -1) - 1 > MAX_ROW_BYTES:
                    row = first_row + len(line_ends) - 1
                    raise DataError(f"{path} row {row}: longer than {MAX_ROW_BYTES:,} bytes; is this a TSV?")
                yield LineBlock(path, content, first_row, line_ends, num_bytes)
                first_row += len(line_ends)
    except OSError as error:
        raise DataError(f"cannot read the pictures {path}: {error.strerror}") from error


def _find_line_ends(content: bytes) -> list[int]:
    line_ends = []
    end = content.find(b"\n")
    while end >= 0:
        line_ends.append(end)
        end = content.find(b"\n", end + 1)
    if not content.endswith(b"\n"):
        line_ends.append(len(content))
    return line_ends
