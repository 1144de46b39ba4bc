"""Rows of a TSV of pictures, and what a bad one gets."""

from __future__ import annotations

import base64
import operator
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from cn_clip.data.bad_rows import BadRow
from cn_clip.errors import DataError
from cn_clip.preprocess.splits.line_blocks import LineBlock
from cn_clip.preprocess.splits.picture_rows import PictureRow, check_block, read_pictures


def encode(colour: tuple[int, int, int], format: str) -> bytes:
    file = BytesIO()
    Image.new("RGB", (12, 8), colour).save(file, format)
    return file.getvalue()


def read(folder: Path, content: bytes) -> list[PictureRow]:
    path = folder / "train_imgs.tsv"
    path.write_bytes(content)
    rows: list[PictureRow] = []
    for block in read_pictures(path):
        for row in block.rows:
            if isinstance(row, BadRow):
                raise row.error()
            rows.append(row)
    return rows


@pytest.fixture
def picture(encode_picture: Callable[..., bytes]) -> bytes:
    return encode_picture((200, 100, 50))


@pytest.fixture
def good(picture: bytes) -> bytes:
    return b"7\t" + base64.b64encode(picture)


def test_rows_in_file_order(tmp_path: Path, picture: bytes, good: bytes) -> None:
    rows = read(tmp_path, good + b"\n-3\t" + base64.urlsafe_b64encode(picture))
    assert [(row.image_id, row.picture, row.row) for row in rows] == [(7, picture, 1), (-3, picture, 2)]
    blocks = list(read_pictures(tmp_path / "train_imgs.tsv"))
    assert sum(block.num_bytes for block in blocks) == (tmp_path / "train_imgs.tsv").stat().st_size


def test_bom_windows_line_ends_and_blank_lines(tmp_path: Path, good: bytes) -> None:
    rows = read(tmp_path, b"\xef\xbb\xbf" + good + b"\r\n\r\n \n" + good + b"\r\n\n")
    assert [row.row for row in rows] == [1, 4]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (b"7", r"row 2 .the last line, which may be cut.: it has 1 column, not 2"),
        (b"7\tabc\tdef\n", r"row 2: it has 3 columns"),
        (b"dog.jpg\tabc\n", r"row 2, column 1: 'dog\.jpg' is not a whole number"),
        (b"007\tabc\n", r"row 2, column 1: '007' has leading zeros, which are not allowed; write the number"),
        (b"-01\tabc\n", r"row 2, column 1: '-01' has leading zeros"),
        (b"-0\tabc\n", r"row 2, column 1: '-0' is not a whole number"),
        (b"1_0\tabc\n", r"row 2, column 1: '1_0' is not"),
        (b"1.0\tabc\n", r"row 2, column 1: '1\.0' is not"),
        (b"9223372036854775808\tabc\n", r"64 bits"),
        (b"\xff\xfe\tabc\n", r"row 2, column 1"),
        (b"7\tabc\n", r"row 2, column 2 .the picture of id 7.: not base64"),
        (b"7\tab\0bc\n", r"row 2, column 2 .* not base64"),
        (b"7\ta!bc\n", r"row 2, column 2 .* not base64"),
        (b"7\tYWJj\n", r"row 2, column 2 .* not a picture of a known format"),
        (b"8\t====\n", r"row 2, column 2 .the picture of id 8.: not base64"),
    ],
)
def test_a_bad_row_is_named(tmp_path: Path, good: bytes, row: bytes, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        read(tmp_path, good + b"\n" + row)
    assert "train_imgs.tsv" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.filterwarnings("ignore::UserWarning")  # PIL remarks on cut metadata before it gives up
@pytest.mark.parametrize("format", ["PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF"])
def test_a_file_cut_anywhere_is_an_error(
    tmp_path: Path, encode_picture: Callable[..., bytes], format: str
) -> None:
    row = b"7\t" + base64.b64encode(encode_picture((200, 100, 50), format))
    assert len(read(tmp_path, row)) == 1
    # the tail of base64 may be its padding only, and a format may end in bytes that carry no pixel
    for size in range(1, len(row) - 12, 7 if len(row) > 400 else 1):
        with pytest.raises(DataError, match=r"row 1 .the last line, which may be cut"):
            read(tmp_path, row[:size])


def test_a_row_without_end_is_not_read_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cn_clip.preprocess.splits.line_blocks.MAX_ROW_BYTES", 1000)
    with pytest.raises(DataError, match="row 1: longer than 1,000 bytes"):
        read(tmp_path, b"7\t" + b"A" * 5000)


def test_rows_keep_their_numbers_over_blocks(
    tmp_path: Path, good: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cn_clip.preprocess.splits.line_blocks._BLOCK_BYTES", 300)
    path = tmp_path / "train_imgs.tsv"
    path.write_bytes(b"\xef\xbb\xbf" + b"\n".join([good, b"", good, b"\r", b"bad", good] * 20))
    blocks = list(read_pictures(path, decode=True, num_threads=3))
    assert len(blocks) > 10
    assert sum(block.num_lines for block in blocks) == 120
    assert sum(block.num_bytes for block in blocks) == path.stat().st_size
    rows = [row for block in blocks for row in block.rows]
    assert [row.row for row in rows if isinstance(row, PictureRow)] == [
        6 * turn + row for turn in range(20) for row in (1, 3, 6)
    ]
    assert [row.row for row in rows if isinstance(row, BadRow)] == [6 * turn + 5 for turn in range(20)]


_MAGIC = [b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"GIF89a", b"RIFF", b"BM", b"II*\0", b"%!PS"]
_PICTURES = [encode((1, 2, 3), format) for format in ("PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF")]


@st.composite
def spoilt_pictures(draw: st.DrawFn) -> bytes:
    """A picture with some bytes changed, and maybe cut."""
    picture = bytearray(draw(st.sampled_from(_PICTURES)))
    for place, value in draw(st.lists(st.tuples(st.integers(0, 2000), st.integers(0, 255)), max_size=6)):
        picture[place % len(picture)] = value
    return bytes(picture[: draw(st.integers(0, len(picture)) | st.just(len(picture)))])


_ROWS = st.binary(max_size=100) | st.builds(
    lambda key, picture, end: key + b"\t" + base64.b64encode(picture) + end,
    st.integers().map(lambda number: b"%d" % number) | st.binary(max_size=5),
    st.builds(operator.add, st.sampled_from(_MAGIC), st.binary(max_size=60)) | spoilt_pictures(),
    st.sampled_from([b"\n", b"\r\n", b"", b"==\n", b"\t\n"]),
)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # PIL remarks on odd metadata
@settings(max_examples=10_000, deadline=None)
@given(content=_ROWS, decode=st.booleans())
def test_any_bytes_are_rows_or_bad_rows(content: bytes, decode: bool) -> None:
    line_ends = [place for place, byte in enumerate(content) if byte == 10]
    if not content.endswith(b"\n"):
        line_ends.append(len(content))
    path = Path("train_imgs.tsv")
    checked = check_block(LineBlock(path, content, 1, line_ends, len(content)), decode=decode)
    assert len(checked.rows) == sum(bool(line.strip()) for line in content.split(b"\n"))
    for row in checked.rows:
        if isinstance(row, BadRow):
            assert str(row).startswith("train_imgs.tsv row ") and "\n" not in str(row)
        else:
            assert type(row.image_id) is int and abs(row.image_id) < 2**63
            assert row.picture and min(row.size) > 0
