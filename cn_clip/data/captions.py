"""Captions of a `{split}_texts.jsonl`: one object per line, `{"text_id": 8, "text": "…", "image_ids": [17, 21]}`."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

from cn_clip.errors import DataError

_BOM = b"\xef\xbb\xbf"
_SHAPE = '{"text_id": 8, "text": "…", "image_ids": [17]}'
MAX_ID = 2**63 - 1
"""Ids travel in int64 tensors."""


@dataclass(frozen=True, slots=True)
class Caption:
    """One row of the file."""

    text_id: int
    text: str
    image_ids: tuple[int, ...]
    row: int
    """Line of the file, from 1."""


def preprocess_text(text: str) -> str:
    """Lower case, curly double quotes to straight ones: the vocabulary has neither capitals nor curly quotes."""
    return text.lower().replace("“", '"').replace("”", '"')


def read_captions(jsonl_path: str | PathLike[str], *, labelled: bool = True) -> Iterator[Caption]:
    """Each caption in file order; blank lines are passed over. DataError names file, row and column.

    `labelled=False` also takes rows without `image_ids`, as feature extraction does.
    """
    path = Path(jsonl_path)
    try:
        with path.open("rb") as file:
            for row, line in enumerate(file, start=1):
                line = line.removeprefix(_BOM) if row == 1 else line
                if line.strip():
                    yield _read_row(line, row, f"{path} row {row}", labelled)
    except OSError as error:
        raise DataError(f"cannot read the captions {path}: {error.strerror}") from error


def _read_row(line: bytes, row: int, where: str, labelled: bool) -> Caption:
    try:
        fields = json.loads(line.decode().rstrip())
    except UnicodeDecodeError as error:
        raise DataError(f"{where}, column {error.start + 1}: not UTF-8; save the file as UTF-8") from error
    except json.JSONDecodeError as error:
        cut = "" if line.endswith(b"\n") else " (the last line, which may be cut)"
        reason = "a number has leading zeros, which are not allowed" if _at_leading_zero(error) else error.msg
        raise DataError(f"{where}, column {error.colno}{cut}: not JSON ({reason}); give {_SHAPE}") from error
    except (RecursionError, ValueError) as error:  # nested too deeply, or a number of thousands of digits
        raise DataError(f"{where}: cannot be read ({error}); give {_SHAPE}") from error
    if not isinstance(fields, dict):
        raise DataError(f"{where}: not an object with named fields; give {_SHAPE}")
    needed = ("text_id", "text", "image_ids") if labelled else ("text_id", "text")
    missing = [name for name in needed if name not in fields]
    if missing:
        raise DataError(f"{where}: field {missing[0]} is missing; give {_SHAPE}")
    return Caption(
        text_id=_read_id(fields["text_id"], f"{where}, field text_id"),
        text=_read_text(fields["text"], f"{where}, field text"),
        image_ids=_read_ids(fields.get("image_ids", []), f"{where}, field image_ids"),
        row=row,
    )


def _at_leading_zero(error: json.JSONDecodeError) -> bool:
    # after `0` JSON's number is over, so a digit there is what the parser stumbles on
    return re.fullmatch("0[0-9]", error.doc[max(0, error.pos - 1) : error.pos + 1]) is not None


def _read_id(value: Any, where: str) -> int:  # Any: whatever the JSON held
    if type(value) is not int or abs(value) > MAX_ID:  # `True` is an int too, but no id
        raise DataError(
            f"{where}: {_shown(value)} is not a whole number of 64 bits; "
            "ids must be numbers without quotes and leading zeros"
        )
    return value


def _read_ids(value: Any, where: str) -> tuple[int, ...]:  # Any: whatever the JSON held
    if not isinstance(value, list):
        raise DataError(f"{where}: {_shown(value)} is not a list of ids")
    return tuple(_read_id(item, where) for item in value)


def _read_text(value: Any, where: str) -> str:  # Any: whatever the JSON held
    if isinstance(value, str):
        return value
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)  # a price or a year typed without quotes is still a caption
    raise DataError(f"{where}: {_shown(value)} is not a text")


def _shown(value: object) -> str:
    shown = repr(value)
    return shown if len(shown) <= 60 else f"{shown[:57]}..."
