"""What a source gives: pictures, captions that name them, and rows that cannot be used."""

from __future__ import annotations

import binascii
import os
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from cn_clip.data.table_format import MAX_ROW_BYTES, decode_base64
from cn_clip.errors import DataError
from cn_clip.preprocess.importing.missing_files import hint_at
from cn_clip.preprocess.importing.split_choice import SplitChoice

MAX_PICTURE_BYTES = MAX_ROW_BYTES * 3 // 4
"""In base64, a larger one would not fit a row."""


class Content(Protocol):
    """Where the bytes of a picture are; read once, in a thread."""

    def read(self) -> bytes:
        """The encoded picture; DataError says why it cannot be had."""


@dataclass(frozen=True, slots=True)
class FileContent:
    """A file of its own."""

    path: Path
    below: Path | None = None
    """Folder below which a table names it: where it is missing, what could be meant is looked for there."""

    def read(self) -> bytes:
        try:
            status = self.path.stat()
            # a pipe would be waited for, a device has no end
            if not stat.S_ISREG(status.st_mode):
                raise DataError(f"cannot read {self.path}: it is no file")
            if status.st_size > MAX_PICTURE_BYTES:
                raise DataError(f"cannot read {self.path}: it has more than {MAX_PICTURE_BYTES:,} bytes")
            return self.path.read_bytes()
        except OSError as error:
            hint = self._hint() if isinstance(error, FileNotFoundError) else ""
            raise DataError(f"cannot read {self.path}: {error.strerror}{hint}") from error
        except ValueError as error:  # no name of a file: a zero byte or half a character in it
            raise DataError(f"cannot read {str(self.path)!r}: {error}") from error

    def _hint(self) -> str:
        if self.below is None:
            return ""
        hint = hint_at(self.below, self.path.relative_to(self.below).as_posix())
        return f"; {hint}" if hint else ""


@dataclass(frozen=True, slots=True)
class BytesContent:
    """In memory already."""

    content: bytes

    def read(self) -> bytes:
        return self.content


@dataclass(frozen=True, slots=True)
class Base64Content:
    """In memory, in base64 of either alphabet."""

    text: bytes

    def read(self) -> bytes:
        try:
            return decode_base64(self.text)
        except binascii.Error as error:
            raise DataError(f"not base64 ({error})") from error


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture; its captions follow."""

    key: str
    """What captions name it by; where the source has whole numbers as ids, the number."""
    content: Content
    where: str
    """File and row, for messages."""
    name: str = ""
    """What the map of names shows; empty: the key."""
    split: str | None = None
    """Where the source says so."""


@dataclass(frozen=True, slots=True)
class Text:
    """A caption of pictures that came before it."""

    text: str
    keys: tuple[str, ...]
    where: str
    text_id: int | None = None
    """Where the source has whole numbers as ids; the others are counted."""
    split: str | None = None
    """Of a caption without pictures, as the queries of a hidden test set are."""


@dataclass(frozen=True, slots=True)
class BadItem:
    """A row that gives neither; the run stops at it or passes over it, as asked."""

    where: str
    reason: str
    num_lost: int = 0
    """Pictures and captions that are lost with it, where it is the end of a part that breaks off."""
    is_broken_part: bool = False
    """The rest of its part is lost."""
    is_counted: bool = True
    """`num_lost` is known."""


Item = Picture | Text | BadItem


@dataclass(frozen=True)
class Part:
    """Some of the items: those of a tar, of a table. An interrupted import goes on inside a part, and past whole ones."""

    name: str
    items: Callable[[], Iterator[Item]]
    files: tuple[Path, ...] = ()
    """What they are read from: another size or time of change is another import."""
    url: str | None = None
    """What they are read from, where that is not on this machine."""
    num_items: Callable[[], int | None] | None = None
    """About how many there will be, where that is cheap to know."""


@dataclass(frozen=True)
class Source:
    """All that an import reads, in order."""

    parts: Sequence[Part]
    splits: tuple[str, ...]
    """Every name that an item's `split` may have, or that `choice` may give."""
    choice: SplitChoice | None = None
    """How pictures without a split of their own get one."""
    own_ids: bool = False
    """Keys are whole numbers, and stay the ids; else ids are counted."""
    names_are_files: bool = False
    """A key names one file: where it comes again, the file need not be read again."""
    has_names: bool = True
    """Names are written down beside ids, where they are not the ids."""
    companions: Mapping[str, bytes] = field(default_factory=dict)
    """File name -> content: written beside the splits."""
    is_resumable: bool = True
    """What was done before an error is kept."""
    advice: str = "mend it and run again, or pass over such rows with --bad-rows skip"
    """End of the message about a row that cannot be used."""


def name_below(folder: Path, name: str) -> str:
    """The name of a file, from the folder on, written in one way only (`a.jpg` for `./a.jpg`).

    DataError when it is outside of the folder: a table from elsewhere must not reach other files. Only the name is looked at; a link
    inside the folder is the owner's to make.
    """
    if "\0" in name:
        raise DataError(f"{name!r} is no name of a file")
    top = os.path.abspath(folder)
    below = os.path.relpath(os.path.join(top, name), top)
    if below == os.pardir or below.startswith(os.pardir + os.sep) or os.path.isabs(below):
        raise DataError(
            f"{name!r} lies outside of {folder}: name files inside of it, or give a folder above both"
        )
    return Path(below).as_posix()


def require_folder(path: Path, flag: str, what: str) -> None:
    if not path.is_dir():
        raise DataError(f"{flag} {path} is not a folder: give that of {what}")


def require_file(path: Path, flag: str, what: str) -> None:
    if not path.is_file():
        raise DataError(f"{flag}: there is no file {path}: give {what}")
    if not os.access(path, os.R_OK):
        raise DataError(f"{flag}: {path} may not be read: change its permissions")
