"""Writing a result file as a whole: a reader sees the old file or the complete new one, never a part."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from cn_clip.errors import DataError
from cn_clip.files import atomic_path


def check_writable(path: str | os.PathLike[str]) -> None:
    """Raise DataError when `path` cannot be made, so that a command stops before hours of work, not after them."""
    target = Path(path)
    if target.is_dir():
        raise DataError(f"{path} is a folder: give the name of a file to write")
    if not target.parent.is_dir():
        raise DataError(
            f"the folder {target.parent} of the output {target.name} does not exist: make it first"
        )
    if not os.access(target.parent, os.W_OK):
        raise DataError(f"the folder {target.parent} is not writable: choose another output path")


@contextlib.contextmanager
def open_whole(path: str | os.PathLike[str]) -> Iterator[TextIO]:
    """UTF-8 text file that takes the name `path` only when the block ends without an error."""
    check_writable(path)
    target = Path(os.path.realpath(path))  # a link stays a link
    if target.exists() and not target.is_file():  # /dev/stdout, a pipe: nothing to replace
        with target.open("w", encoding="utf-8", newline="\n") as stream:
            yield stream
        return
    with atomic_path(target) as draft, draft.open("w", encoding="utf-8", newline="\n") as stream:
        yield stream
        stream.flush()
        os.fsync(stream.fileno())
