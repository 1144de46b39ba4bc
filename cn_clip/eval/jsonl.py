"""Reading JSONL, one object a line, with errors that name the file and the row."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

from cn_clip.errors import DataError

Row = dict[str, Any]  # Any: a parsed JSON value; the functions below narrow it


def read_rows(path: str | os.PathLike[str]) -> Iterator[tuple[int, Row]]:
    """Yield (row number from 1, object) of each line; blank lines are passed over."""
    number = 0
    try:
        with Path(path).open(encoding="utf-8-sig") as stream:
            for number, line in enumerate(stream, start=1):
                if line.strip():
                    yield number, _parse(line, path, number)
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}; check the path") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text after row {number}: {error.reason}") from error


def take_id(row: Row, field: str, path: object, number: int) -> int:
    """The integer in `field`."""
    value = take(row, field, path, number)
    if type(value) is not int:  # bool is an int to isinstance
        complain(path, number, f"{field} is {shorten(value)}, which should be an integer")
    return value


def take_ids(row: Row, field: str, path: object, number: int) -> list[int]:
    """The list of integers in `field`."""
    values = take(row, field, path, number)
    if not isinstance(values, list):
        complain(path, number, f"{field} is {shorten(values)}, which should be a list of integers")
    for place, value in enumerate(values, start=1):
        if type(value) is not int:
            complain(
                path, number, f"entry {place} of {field} is {shorten(value)}, which should be an integer"
            )
    return values


def take(row: Row, field: str, path: object, number: int) -> Any:  # Any: a parsed JSON value
    """The value in `field`, which must be there."""
    if field not in row:
        complain(path, number, f"{field} is missing; its fields are {', '.join(sorted(row)) or 'none'}")
    return row[field]


def complain(path: object, number: int, sentence: str) -> NoReturn:
    """Raise the DataError of one row."""
    raise DataError(f"{path}, row {number}: {sentence}")


def shorten(value: object) -> str:
    """A value as an error shows it, cut to a readable length."""
    text = repr(value)
    return text if len(text) <= 40 else text[:37] + "..."


def _parse(line: str, path: object, number: int) -> Row:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        cut = "" if line.endswith("\n") else "; the last line may be cut"
        complain(path, number, f"{shorten(line.strip())} is not a JSON object ({error}){cut}")
    if not isinstance(row, dict):
        complain(path, number, f"{shorten(row)} is not a JSON object")
    return row
