"""Members of a tar one after the other, from a file that can seek or from a stream.

The standard library's `tarfile` takes a damaged header, or a file that ends early, for the end of the archive; a training set
must not shrink silently, so headers are read here. Layout: POSIX.1-2017 "ustar" and "pax" interchange formats, with GNU's long
names and large sizes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import BinaryIO

BLOCK = 512
SKIPPED_AT_ONCE = 1 << 20
MAX_EXTENSION_BYTES = 1 << 20
"""Of a name or pax header before a member; more is no name."""
MAX_MEMBER_BYTES = 1 << 50
MAX_BODY_BYTES = 1 << 30
"""That are read at once: no picture and no caption is larger."""
FILES = (b"0", b"\0", b"7")
WITHOUT_BODY = (b"1", b"2", b"3", b"4", b"5", b"6")
"""Links, devices, folders, pipes: whatever their header says of a size."""

# the same inside a body and between members: one that is passed over by seeking cannot tell
_CUT = "is cut: the end mark of a tar is missing"


class BrokenTarError(Exception):
    """The file is cut, or is no tar; the message completes "NAME ..."."""


@dataclass(frozen=True, slots=True)
class Member:
    name: str
    size: int
    """Bytes of the body."""
    is_file: bool


class TarWalk:
    """Whoever wants the body of a member reads it before asking for the next one."""

    def __init__(self, file: BinaryIO, start: int = 0) -> None:
        """`start` is the byte where a member begins."""
        self._file, self._at, self._next = file, 0, start
        self._body_at = self._body_size = 0
        self._can_seek = file.seekable()
        self.member_start = start
        """Byte where the latest member begins, with the headers that belong to it."""

    def next(self) -> Member | None:
        """The next member, None at the end mark; BrokenTarError where there is neither."""
        long_name: bytes | None = None
        pax: dict[bytes, bytes] = {}
        self.member_start = self._next
        while True:
            header = self._header()
            if header is None:
                return None
            kind, size = header[156:157], _number(header[124:136])
            self._enter_body(0 if kind in WITHOUT_BODY else size)
            if kind == b"L":
                long_name = self._extension().rstrip(b"\0")
            elif kind == b"x":
                pax = _pax_records(self._extension())
            elif kind == b"S":
                raise BrokenTarError(
                    f"has a sparse member at byte {self.member_start}, which is not supported: write it with tar without --sparse"
                )
            elif kind not in (b"K", b"g"):
                break
        if b"size" in pax:  # of files past 8 GB
            self._enter_body(_pax_size(pax[b"size"]))
        name = pax.get(b"path") or long_name or _name(header)
        return Member(name.decode("utf-8", "surrogateescape"), self._body_size, kind in FILES)

    def body(self) -> bytes:
        """Of the latest member."""
        if self._body_size > MAX_BODY_BYTES:
            raise BrokenTarError(
                f"has a member of {self._body_size} bytes at byte {self.member_start}, which is no sample"
            )
        self._go_to(self._body_at)
        return self._read(self._body_size)

    def _header(self) -> bytes | None:
        self._go_to(self._next)
        header = self._read_up_to(BLOCK)
        if len(header) < BLOCK:
            raise BrokenTarError(_CUT if self._at else "is empty")
        if not any(header):
            return None
        if not _is_header(header):
            raise BrokenTarError(_not_a_tar(header, self._next))
        return header

    def _enter_body(self, size: int) -> None:
        """The header at `_next` has a body of this size behind it."""
        if size > MAX_MEMBER_BYTES:
            raise BrokenTarError(f"has a member of {size} bytes at byte {self._next}, so it is damaged")
        self._body_at, self._body_size = self._at, size
        self._next = self._body_at + -(-size // BLOCK) * BLOCK

    def _extension(self) -> bytes:
        if self._body_size > MAX_EXTENSION_BYTES:
            raise BrokenTarError(f"has a name of {self._body_size} bytes at byte {self.member_start}")
        return self.body()

    def _go_to(self, position: int) -> None:
        if self._can_seek and position != self._at:
            self._file.seek(position)
            self._at = position
        while self._at < position:
            self._read(min(position - self._at, SKIPPED_AT_ONCE))

    def _read(self, size: int) -> bytes:
        content = self._read_up_to(size)
        if len(content) < size:
            raise BrokenTarError(_CUT)
        return content

    def _read_up_to(self, size: int) -> bytes:
        """So many bytes, fewer at the end of the file only: a stream may hand over what has just come in."""
        content = self._file.read(size)
        while 0 < len(content) < size:
            more = self._file.read(size - len(content))
            if not more:
                break
            content += more
        self._at += len(content)
        return content


def _is_header(header: bytes) -> bool:
    """Whether the sum that a header holds is that of its bytes, its own place taken for spaces."""
    return _octal(header[148:156]) == sum(header) - sum(header[148:156]) + 8 * ord(" ")


def _number(digits: bytes) -> int:
    """A number of a header: octal digits, or GNU's base 256 for large ones."""
    number = int.from_bytes(digits[1:], "big") if digits[0] == 0x80 else _octal(digits)
    if number is None:
        raise BrokenTarError(f"has {digits!r} for a number in a header, so it is damaged")
    return number


def _octal(digits: bytes) -> int | None:
    digits = digits.strip(b" \0")
    # Python's `int` would take signs and underscores too
    return int(digits or b"0", 8) if not digits.strip(b"01234567") else None


def _name(header: bytes) -> bytes:
    name, prefix = header[:100].split(b"\0")[0], header[345:500].split(b"\0")[0]
    # GNU's older format has other things in the place of the prefix
    return prefix + b"/" + name if prefix and header[257:263] == b"ustar\0" else name


def _pax_records(records: bytes) -> dict[bytes, bytes]:
    r"""`"LENGTH KEY=VALUE\n"`, where the length counts the whole record."""
    found = {}
    while records.strip(b"\0"):
        length, space, _ = records.partition(b" ")
        if (
            not space
            or not length.isdigit()
            or len(length) > 9
            or not len(length) + 1 < int(length) <= len(records)
        ):
            raise BrokenTarError("has a pax header that cannot be read, so it is damaged")
        key, _, value = records[len(length) + 1 : int(length) - 1].partition(b"=")
        found[key] = value
        records = records[int(length) :]
    return found


def _pax_size(digits: bytes) -> int:
    if not digits.isdigit() or len(digits) > 20:
        raise BrokenTarError("has a pax header without a size, so it is damaged")
    return int(digits)


def _not_a_tar(header: bytes, position: int) -> str:
    if position:
        return f"has a damaged header at byte {position}"
    if header[:2] == b"\x1f\x8b" or header[:3] == b"BZh" or header[:4] in (b"\xfd7zX", b"\x28\xb5\x2f\xfd"):
        return "is compressed, and cannot be entered in the middle: unpack it once (pictures hardly shrink)"
    return "is not a tar"
