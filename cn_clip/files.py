"""Files that are whole or not there: written beside their place, then moved into it."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO}


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A path beside `path` to write to; it becomes `path` when the block ends well, and is removed when it does not."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        yield partial
        os.replace(partial, path)
    except Exception as error:
        _raise_no_room(error, path)
        raise
    finally:
        partial.unlink(missing_ok=True)


def write_atomically(path: Path, content: bytes | Callable[[BinaryIO], object]) -> None:
    """Write bytes, or what a function writes to the open file, so that no reader ever sees half of it."""
    with atomic_path(path) as partial, partial.open("wb") as file:
        if isinstance(content, bytes):
            file.write(content)
        else:
            content(file)
        file.flush()
        os.fsync(file.fileno())


def _raise_no_room(error: BaseException, path: Path) -> None:
    """Raise the disk that takes no more behind an error, with the file's name: torch's writer buries it under one of its own."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.errno in _NO_ROOM:
            raise OSError(cause.errno, os.strerror(cause.errno), str(path)) from error
        cause = cause.__cause__ or cause.__context__
