"""Tars that are whole, cut at every byte, or damaged at random: never anything but their members or one reason."""

from __future__ import annotations

import io
import random
import tarfile

import pytest

from cn_clip.data.tars.walk import BrokenTarError, TarWalk

NAMES = {
    tarfile.USTAR_FORMAT: ["0.jpg", "folder/" * 16 + "0.txt", "1.jpg"],
    tarfile.GNU_FORMAT: ["0.jpg", "长" * 60 + ".txt", "1.jpg"],
    tarfile.PAX_FORMAT: ["0.jpg", "长" * 60 + ".txt", "1.jpg"],
}
each_format = pytest.mark.parametrize("form", NAMES, ids=["ustar", "gnu", "pax"])


class Stream(io.RawIOBase):
    """Gives three hundred bytes at a time, and cannot seek."""

    def __init__(self, content: bytes) -> None:
        self._content = io.BytesIO(content)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return False

    def read(self, size: int = -1) -> bytes:
        return self._content.read(min(size, 300))


def tar(form: int) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=form) as writer:
        for number, name in enumerate(NAMES[form]):
            header = tarfile.TarInfo(name)
            header.size, header.mtime = 700 * number, 1.5
            writer.addfile(header, io.BytesIO(bytes([number]) * header.size))
    return file.getvalue()


def members(content: bytes, *, start: int = 0, bodies: bool = True) -> list[tuple[str, int, bytes]]:
    walk, found = TarWalk(io.BytesIO(content), start), []
    while (member := walk.next()) is not None:
        found.append((member.name, walk.member_start, walk.body() if bodies else b""))
    return found


@each_format
def test_members_are_those_that_were_written_and_can_be_entered_at(form: int) -> None:
    content = tar(form)
    whole = members(content)
    assert [name for name, _, _ in whole] == NAMES[form]
    assert [body for _, _, body in whole] == [bytes([number]) * 700 * number for number in range(3)]
    for number, (_, start, _) in enumerate(whole):
        assert members(content, start=start) == whole[number:]


@each_format
def test_a_stream_that_comes_in_pieces_is_read_alike(form: int) -> None:
    walk, names = TarWalk(Stream(tar(form))), []
    while (member := walk.next()) is not None:
        names.append(member.name)
    assert names == NAMES[form]


@each_format
@pytest.mark.parametrize("bodies", [True, False])
def test_a_tar_cut_at_any_byte_is_broken(form: int, bodies: bool) -> None:
    content = tar(form)
    walk = TarWalk(io.BytesIO(content))
    while walk.next() is not None:
        pass
    for size in range(walk.member_start + 512):
        with pytest.raises(BrokenTarError):
            members(content[:size], bodies=bodies)


@each_format
def test_damage_is_a_reason_or_another_byte_of_a_body_and_never_ends_otherwise(form: int) -> None:
    content, rng = tar(form), random.Random(form)
    for _ in range(3000):
        damaged = bytearray(content)
        for _ in range(rng.choice([1, 3])):
            damaged[rng.randrange(len(content) - 1024)] = rng.randrange(256)
        start = rng.randrange(len(content) // 512) * 512
        if rng.random() < 0.7:  # a header whose sum is right, whatever else it holds
            header = damaged[start : start + 512]
            damaged[start + 148 : start + 156] = b"%06o\0 " % (sum(header) - sum(header[148:156]) + 256)
        try:
            members(bytes(damaged))
        except BrokenTarError as error:
            assert "\n" not in str(error)


def with_size(field: bytes) -> bytes:
    """A tar of one member whose header has these twelve bytes for its size."""
    content = bytearray(tar(tarfile.USTAR_FORMAT))
    content[124:136] = field.ljust(12, b"\0")
    content[148:156] = b"%06o\0 " % (sum(content[:512]) - sum(content[148:156]) + 256)
    return bytes(content)


@pytest.mark.parametrize(
    "field", [b"-0000001000", b"0_1", b"0o7", b"9", b"\x80" + b"\xff" * 11, b"\x80\0\0\0\0\0\0\1"]
)
def test_sizes_that_cannot_be_are_damage(field: bytes) -> None:
    with pytest.raises(BrokenTarError):
        members(with_size(field))


def test_a_size_in_base_256_is_read() -> None:
    assert members(with_size(b"\x80" + bytes(11))) == members(tar(tarfile.USTAR_FORMAT))
