"""What a source gives: pictures, captions that name them, and rows that cannot be used."""

from __future__ import annotations

import binascii
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from cn_clip.errors import DataError
from cn_clip.preprocess.importing.split_choice import SplitChoice


class Content(Protocol):
    """Where the bytes of a picture are; read once, in a thread."""

    def read(self) -> bytes:
        """The encoded picture; DataError says why it cannot be had."""


@dataclass(frozen=True, slots=True)
class FileContent:
    """A file of its own."""

    path: Path

    def read(self) -> bytes:
        try:
            return self.path.read_bytes()
        except OSError as error:
            raise DataError(f"cannot read {self.path}: {error.strerror}") from error


@dataclass(frozen=True, slots=True)
class SliceContent:
    """A run of bytes inside a file, as the members of a tar are."""

    path: Path
    start: int
    num_bytes: int

    def read(self) -> bytes:
        try:
            with self.path.open("rb", buffering=0) as file:
                file.seek(self.start)
                content = file.read(self.num_bytes)
        except OSError as error:
            raise DataError(f"cannot read {self.path}: {error.strerror}") from error
        if len(content) < self.num_bytes:
            raise DataError(f"{self.path} is cut: {len(content)} of {self.num_bytes} bytes are there")
        return content


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
            return binascii.a2b_base64(self.text.translate(_STANDARD_ALPHABET), strict_mode=True)
        except binascii.Error as error:
            raise DataError(f"not base64 ({error})") from error


_STANDARD_ALPHABET = bytes.maketrans(b"-_", b"+/")


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


Item = Picture | Text | BadItem


@dataclass(frozen=True)
class Part:
    """Some of the items: those of a tar, of a table. An interrupted import goes on inside a part, and past whole ones."""

    name: str
    items: Callable[[], Iterator[Item]]
    files: tuple[Path, ...] = ()
    """What they are read from: another size or time of change is another import."""


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
    has_names: bool = True
    """Names are written down beside ids, where they are not the ids."""
    companions: Mapping[str, bytes] = field(default_factory=dict)
    """File name -> content: written beside the splits."""
    is_resumable: bool = True
    """What was done before an error is kept."""
    advice: str = "mend it and run again, or pass over such rows with --bad-rows skip"
    """End of the message about a row that cannot be used."""


def require_folder(path: Path, flag: str, what: str) -> None:
    if not path.is_dir():
        raise DataError(f"{flag} {path} is not a folder: give that of {what}")


def require_file(path: Path, flag: str, what: str) -> None:
    if not path.is_file():
        raise DataError(f"{flag}: there is no file {path}: give {what}")
    if not os.access(path, os.R_OK):
        raise DataError(f"{flag}: {path} may not be read: change its permissions")
