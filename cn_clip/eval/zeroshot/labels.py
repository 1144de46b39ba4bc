"""Files beside a zero-shot set: names of its classes, and the order in which its predictions are wanted."""

from __future__ import annotations

import json
from pathlib import Path

from cn_clip.errors import DataError


def read_class_names(path: str | Path) -> list[str]:
    """Name of class k in line k, from 0; blank lines at the end are passed over."""
    names = [line.strip() for line in _read_text(path, "label file").rstrip().splitlines()]
    if not names:
        raise DataError(f"the label file {path} is empty: give the name of one class per line")
    for row, name in enumerate(names, start=1):
        if not name:
            raise DataError(f"{path} row {row} is blank, but stands for class {row - 1}: give its name")
    return names


def read_index(path: str | Path, num_pictures: int) -> list[int]:
    """Positions of pictures, from 0, in the order in which their predictions are to be written."""
    try:
        index = json.loads(_read_text(path, "index"))
    except ValueError as error:
        raise DataError(
            f"the index {path} is not JSON ({error}): give a list of picture positions"
        ) from error
    if not isinstance(index, list) or not index:
        raise DataError(f"the index {path} is not a list of picture positions")
    for place, position in enumerate(index):
        if type(position) is not int or not 0 <= position < num_pictures:
            raise DataError(
                f"the index {path} has {position!r} at place {place}: give positions 0 to {num_pictures - 1}"
            )
    return index


def _read_text(path: str | Path, what: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8-sig")
    except OSError as error:
        raise DataError(f"cannot read the {what} {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"the {what} {path} is not UTF-8 text: save it as UTF-8") from error
