"""Values of the reference's pairs, read without unpickling.

A pickle is a small program that may call anything. The reference wrote only `(image id, text id, caption)`, so this
reads the few opcodes that ints, strings and one tuple need, in every protocol, and refuses a value with any other.
Opcodes: https://github.com/python/cpython/blob/main/Lib/pickletools.py
"""

from __future__ import annotations

from collections.abc import Callable

Item = int | str
Reader = Callable[[bytes, int], tuple[Item, int]]
"""(value, position after the opcode) -> (what was read, position after it)."""


def read_flat_pickle(value: bytes) -> tuple[Item, Item, Item]:
    """The three ints or strings of a pickled tuple; ValueError names the first opcode that is not one of theirs."""
    stack: list[Item] = []
    memo: dict[int, Item | None] = {}
    mark = 0
    position = 0
    try:
        while True:
            opcode = value[position : position + 1]
            position += 1
            if opcode in _ITEMS:
                item, position = _ITEMS[opcode](value, position)
                stack.append(item)
            elif opcode in _SKIPPED:
                position += _SKIPPED[opcode]
            elif opcode in _PUTS or opcode == b"\x94":  # MEMOIZE numbers by itself
                slot, position = _PUTS[opcode](value, position) if opcode in _PUTS else (len(memo), position)
                memo[int(slot)] = stack[-1] if stack else None
            elif opcode in _GETS:
                slot, position = _GETS[opcode](value, position)
                stack.append(_recalled(memo, int(slot)))
            elif opcode == b"(":  # MARK
                mark = len(stack)
            elif opcode in (b"\x87", b"t"):  # TUPLE3, TUPLE
                return _finish(value, position, memo, stack[mark:] if opcode == b"t" else stack)
            else:
                raise ValueError(f"opcode {opcode!r} is not one that a caption needs")
    except (IndexError, KeyError, UnicodeDecodeError) as error:
        raise ValueError("the value is cut or damaged") from error


def _recalled(memo: dict[int, Item | None], slot: int) -> Item:
    item = memo[slot]
    if item is None:
        raise ValueError("the value refers to itself")
    return item


def _finish(
    value: bytes, position: int, memo: dict[int, Item | None], items: list[Item]
) -> tuple[Item, Item, Item]:
    """The tuple, if nothing but storing it in the memo and STOP follows."""
    opcode = value[position : position + 1]
    position += 1
    if opcode in _PUTS:
        position = _PUTS[opcode](value, position)[1]
    if opcode in _PUTS or opcode == b"\x94":
        opcode = value[position : position + 1]
    if opcode != b"." or len(items) != 3:
        raise ValueError("not one tuple of three")
    return items[0], items[1], items[2]


def _take(value: bytes, position: int, size: int) -> bytes:
    taken = value[position : position + size]
    if len(taken) != size:
        raise IndexError
    return taken


def _integer(size: int, *, signed: bool = False) -> Reader:
    def read(value: bytes, position: int) -> tuple[Item, int]:
        return int.from_bytes(_take(value, position, size), "little", signed=signed), position + size

    return read


def _long(value: bytes, position: int) -> tuple[Item, int]:
    size = value[position]
    return int.from_bytes(_take(value, position + 1, size), "little", signed=True), position + 1 + size


def _text(length_size: int) -> Reader:
    def read(value: bytes, position: int) -> tuple[Item, int]:
        size = int.from_bytes(_take(value, position, length_size), "little")
        start = position + length_size
        # pickle writes half of a surrogate pair too, and the caption must come back as it was
        return _take(value, start, size).decode("utf-8", "surrogatepass"), start + size

    return read


def _line(value: bytes, position: int) -> tuple[bytes, int]:
    end = value.find(b"\n", position)
    if end < 0:
        raise IndexError
    return value[position:end], end + 1


def _integer_line(value: bytes, position: int) -> tuple[Item, int]:
    digits, position = _line(value, position)
    return int(digits.removesuffix(b"L")), position


def _text_line(value: bytes, position: int) -> tuple[Item, int]:
    text, position = _line(value, position)
    return text.decode("raw-unicode-escape"), position


_ITEMS: dict[bytes, Reader] = {
    b"K": _integer(1),  # BININT1
    b"M": _integer(2),  # BININT2
    b"J": _integer(4, signed=True),  # BININT
    b"\x8a": _long,  # LONG1
    b"I": _integer_line,  # INT, protocol 0
    b"L": _integer_line,  # LONG, protocol 0
    b"\x8c": _text(1),  # SHORT_BINUNICODE
    b"X": _text(4),  # BINUNICODE
    b"\x8d": _text(8),  # BINUNICODE8
    b"V": _text_line,  # UNICODE, protocol 0
}
_SKIPPED = {b"\x80": 1, b"\x95": 8}  # PROTO and its number, FRAME and its length
_PUTS: dict[bytes, Reader] = {b"q": _integer(1), b"r": _integer(4), b"p": _integer_line}
_GETS: dict[bytes, Reader] = {b"h": _integer(1), b"j": _integer(4), b"g": _integer_line}
