"""Captions of a `{split}_texts.jsonl`: one object per line, `{"text_id": 8, "text": "…", "image_ids": [17, 21]}`.

`"hard_negatives": ["…"]` may stand beside them: captions that look right for these pictures and are wrong.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

from cn_clip.data.bad_rows import BadRow
from cn_clip.data.table_format import BOM
from cn_clip.errors import DataError

_SHAPE = '{"text_id": 8, "text": "…", "image_ids": [17]}'
MAX_ID = 2**63 - 1
"""Ids travel in int64 tensors."""
_read_json = json.JSONDecoder().decode


@dataclass(frozen=True, slots=True)
class Caption:
    """One row of the file."""

    text_id: int
    text: str
    image_ids: tuple[int, ...]
    row: int
    """Line of the file, from 1."""
    hard_negatives: tuple[str, ...] = ()
    """Captions that are wrong for these pictures, though they look right."""


def preprocess_text(text: str) -> str:
    """Lower case, curly double quotes to straight ones: the vocabulary has neither capitals nor curly quotes."""
    return text.lower().replace("“", '"').replace("”", '"')


def caption_key(caption: str) -> int:
    """Signed 64-bit hash of a prepared caption, the same in every process: equal keys are equal to the model."""
    prepared = preprocess_text(caption).encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(prepared, digest_size=8).digest(), "little", signed=True)


def read_captions(jsonl_path: str | PathLike[str], *, labelled: bool = True) -> Iterator[Caption]:
    """Each caption in file order; blank lines are passed over. DataError names file, row and column.

    `labelled=False` also takes rows without `image_ids`, as feature extraction does.
    """
    for row in read_caption_rows(jsonl_path, labelled=labelled):
        if isinstance(row, BadRow):
            raise row.error()
        yield row


def read_caption_rows(
    jsonl_path: str | PathLike[str], *, labelled: bool = True
) -> Iterator[Caption | BadRow]:
    """As `read_captions`, with each row that cannot be used in its place. DataError when the file cannot be read."""
    path = Path(jsonl_path)
    try:
        with path.open("rb", buffering=1 << 20) as file:
            for row, line in enumerate(file, start=1):
                line = line.removeprefix(BOM) if row == 1 else line
                if line and not line.isspace():
                    yield read_caption_row(line, row, path, labelled=labelled)
    except OSError as error:
        raise DataError(f"cannot read the captions {path}: {error.strerror}") from error


def read_caption_row(line: bytes, row: int, path: Path, *, labelled: bool = True) -> Caption | BadRow:
    """One line of the file, not blank, with its line end and without a byte order mark.

    `row` and `path` are for the sentence of a row that cannot be used.
    """
    try:
        return _read_row(line, row, labelled)
    except _UnusableError as error:
        return BadRow(
            path=path,
            row=row,
            column=error.column,
            reason=error.reason,
            is_unended=error.may_be_cut and not line.endswith(b"\n"),
        )


class _UnusableError(Exception):
    def __init__(self, column: int | str | None, reason: str, *, may_be_cut: bool = False) -> None:
        self.column, self.reason, self.may_be_cut = column, reason, may_be_cut


def _read_row(line: bytes, row: int, labelled: bool) -> Caption:
    fields = _read_object(line)
    try:
        text_id, text = fields["text_id"], fields["text"]
        image_ids = fields["image_ids"] if labelled else fields.get("image_ids", [])
    except KeyError as error:
        raise _UnusableError(None, f"field {error.args[0]} is missing; give {_SHAPE}") from error
    if type(image_ids) is not list:
        raise _UnusableError("image_ids", f"{_shown(image_ids)} is not a list of ids")
    return Caption(
        _read_id(text_id, "text_id"),
        text if type(text) is str else _read_number(text),
        tuple([_read_id(image_id, "image_ids") for image_id in image_ids]),
        row,
        _read_texts(fields["hard_negatives"], "hard_negatives") if "hard_negatives" in fields else (),
    )


def _read_texts(value: Any, field: str) -> tuple[str, ...]:  # Any: whatever the JSON held
    if type(value) is not list or not all(type(text) is str for text in value):
        raise _UnusableError(field, f"{_shown(value)} is not a list of texts")
    return tuple(value)


def _read_object(line: bytes) -> dict[str, Any]:  # Any: whatever the JSON holds
    try:
        fields = _read_json(line.decode().rstrip())
    except UnicodeDecodeError as error:
        raise _UnusableError(error.start + 1, "not UTF-8; save the file as UTF-8") from error
    except json.JSONDecodeError as error:
        reason = "a number has leading zeros, which are not allowed" if _at_leading_zero(error) else error.msg
        raise _UnusableError(error.colno, f"not JSON ({reason}); give {_SHAPE}", may_be_cut=True) from error
    except (RecursionError, ValueError) as error:  # nested too deeply, or a number of thousands of digits
        raise _UnusableError(None, f"cannot be read ({error}); give {_SHAPE}") from error
    if type(fields) is not dict:
        raise _UnusableError(None, f"not an object with named fields; give {_SHAPE}")
    return fields


def _at_leading_zero(error: json.JSONDecodeError) -> bool:
    # after `0` JSON's number is over, so a digit there is what the parser stumbles on
    return re.fullmatch("0[0-9]", error.doc[max(0, error.pos - 1) : error.pos + 1]) is not None


def _read_id(value: Any, field: str) -> int:  # Any: whatever the JSON held
    if type(value) is not int or abs(value) > MAX_ID:  # `True` is an int too, but no id
        raise _UnusableError(
            field,
            f"{_shown(value)} is not a whole number of 64 bits; "
            "ids must be numbers without quotes and leading zeros",
        )
    return value


def _read_number(value: Any) -> str:  # Any: whatever the JSON held
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)  # a price or a year typed without quotes is still a caption
    raise _UnusableError("text", f"{_shown(value)} is not a text")


def _shown(value: object) -> str:
    shown = repr(value)
    return shown if len(shown) <= 60 else f"{shown[:57]}..."
