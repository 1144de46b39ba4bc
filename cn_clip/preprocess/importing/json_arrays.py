"""Objects of an array in a large JSON file, one at a time: memory is flat in the length of the array."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from cn_clip.errors import DataError

_CHUNK_CHARS = 1 << 20
_MAX_NUMBER_CHARS = 64
_MAX_VALUE_CHARS = 64 << 20
"""Of one object: a file that is broken must not be read into memory whole in search of its end."""


def iterate_array(path: Path, name: str | None = None) -> Iterator[Any]:  # Any: whatever the JSON holds
    """Each value of the array `name` of the object that the file holds, or of the array that the file is.

    DataError when there is none, or no JSON.
    """
    try:
        with path.open(encoding="utf-8-sig") as file:
            scanner = _Scanner(file, path)
            if name is None:
                yield from scanner.array()
                return
            scanner.expect("{")
            while scanner.peek() != "}":
                key = scanner.value()
                scanner.expect(":")
                if scanner.peek() == "[":
                    values = scanner.array()
                    if key == name:
                        yield from values
                        return
                    for _ in values:
                        pass
                else:
                    scanner.value()
                if scanner.peek() != "}":
                    scanner.expect(",")
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8; save it as UTF-8") from error
    raise DataError(f"{path}: it has no array {name!r}; give COCO's layout, with images and annotations")


def is_array(path: Path) -> bool:
    """Whether the first character of the file that is not white space begins an array."""
    try:
        with path.open(encoding="utf-8-sig", errors="replace") as file:
            return _Scanner(file, path).peek() == "["
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from error


class _Scanner:
    """Values of a JSON text in order, with a window over the file."""

    def __init__(self, file: TextIO, path: Path) -> None:
        self._file = file
        self._path = path
        self._text = ""
        self._at = 0
        self._num_before = 0
        self._decode = json.JSONDecoder().raw_decode

    def peek(self) -> str:
        """The next character that is not white space, "" at the end."""
        while True:
            while self._at < len(self._text):
                if not self._text[self._at].isspace():
                    return self._text[self._at]
                self._at += 1
            if not self._more():
                return ""

    def expect(self, character: str) -> None:
        if self.peek() != character:
            raise self._wrong(f"expected {character!r}, not {self.peek()!r}")
        self._at += 1

    def value(self) -> Any:  # Any: whatever the JSON holds
        self.peek()
        while True:
            try:
                value, end = self._decode(self._text, self._at)
            except (ValueError, RecursionError) as error:
                too_long = len(self._text) - self._at > _MAX_VALUE_CHARS
                if too_long or not self._more():
                    raise self._wrong(str(error)) from error
                continue
            may_go_on = isinstance(value, int | float) and len(self._text) - end < _MAX_NUMBER_CHARS
            if may_go_on and self._more():
                continue
            self._at = end
            return value

    def array(self) -> Iterator[Any]:  # Any: whatever the JSON holds
        self.expect("[")
        if self.peek() == "]":
            self._at += 1
            return
        while True:
            yield self.value()
            if self.peek() == "]":
                self._at += 1
                return
            self.expect(",")

    def _more(self) -> bool:
        """Whether the window has grown; places in it hold when it has not."""
        chunk = self._file.read(_CHUNK_CHARS)
        if chunk:
            self._num_before += self._at
            self._text = self._text[self._at :] + chunk
            self._at = 0
        return bool(chunk)

    def _wrong(self, reason: str) -> DataError:
        return DataError(
            f"{self._path}, character {self._num_before + self._at + 1}: not JSON ({reason}); is the file whole?"
        )
