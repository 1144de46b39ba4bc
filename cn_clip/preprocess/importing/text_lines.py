"""Lines of a text file in the encodings that tables of Chinese captions come in."""

from __future__ import annotations

import codecs
import io
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Literal

from cn_clip.errors import DataError
from cn_clip.preprocess.importing.items import BadItem

Encoding = Literal["utf-8", "gb18030", "gbk", "gb2312", "big5", "utf-16"]
_UTF16_MARKS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
# utf-16: its lines are turned into UTF-8 when they are cut
_DECODED_AS = {"utf-16": "utf-8", "gbk": "gb18030", "gb2312": "gb18030"}
_SHOWN = 24
_BLOCK_BYTES = 1 << 20


class UndecodableError(Exception):
    """A line is not in the encoding that was named; the message says which."""


class TextLines:
    """Iterator over (line, from 1, with its end) of a file; a line that cannot be decoded raises, and the next can still be read.

    A byte order mark at the beginning is passed over.
    """

    def __init__(self, path: Path, encoding: Encoding = "utf-8") -> None:
        self._path = path
        self._encoding = encoding
        self._lines = _byte_lines(path, encoding)
        self.row = 0

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = next(self._lines)
        self.row += 1
        if self.row == 1:
            line = line.removeprefix(codecs.BOM_UTF8)
            if self._encoding != "utf-16" and line.startswith(_UTF16_MARKS):
                raise UndecodableError("it is UTF-16: save it as UTF-8, or import with --encoding utf-16")
        try:
            return line.decode(_DECODED_AS.get(self._encoding, self._encoding))
        except UnicodeDecodeError as error:
            raise UndecodableError(f"not {self._encoding.upper()}{_other_encoding(line)}") from error

    def or_bad(self) -> Iterator[str | BadItem]:
        """Each line that is not blank; in place of one that cannot be decoded, what is wrong with it."""
        while True:
            try:
                line = next(self)
            except StopIteration:
                return
            except UndecodableError as error:
                yield BadItem(self.where, str(error))
                continue
            if line.strip():
                yield line

    @property
    def where(self) -> str:
        """File and row of the latest line."""
        return f"{self._path} row {self.row}"


def count_lines(path: Path) -> int:
    """Lines of a file, without a look at what is in them."""
    num_lines, last = 0, b"\n"
    with path.open("rb", buffering=0) as file:
        while block := file.read(_BLOCK_BYTES):
            num_lines, last = num_lines + block.count(b"\n"), block[-1:]
    return num_lines + (last != b"\n")


def _byte_lines(path: Path, encoding: Encoding) -> Iterator[bytes]:
    """Lines in an encoding whose line end is the one byte 10: UTF-16 is turned into UTF-8 first."""
    try:
        with path.open("rb") as file:
            yield from file if encoding != "utf-16" else _from_utf16(file, path)
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from error


def _from_utf16(file: BinaryIO, path: Path) -> Iterator[bytes]:
    try:
        for line in io.TextIOWrapper(file, encoding="utf-16", newline="\n"):
            yield line.encode("utf-8", "surrogatepass")
    except UnicodeError as error:
        raise DataError(f"{path}: not UTF-16 ({error}); give another --encoding") from error


def _other_encoding(line: bytes) -> str:
    """What to do, with a look at the line as the commonest other encoding has it."""
    save = "save the table again as CSV UTF-8 (in Excel: Save As, CSV UTF-8)"
    try:
        as_gb18030 = line.decode("gb18030").strip()
    except UnicodeDecodeError:
        return f"; {save}"
    return f"; as GB18030 it reads {as_gb18030[:_SHOWN]!r}: {save}, or import with --encoding gb18030"
