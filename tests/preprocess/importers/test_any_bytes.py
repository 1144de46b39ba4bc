"""Whatever bytes a file holds: rows, bad rows or one sentence; never another exception."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cn_clip.errors import DataError
from cn_clip.preprocess.importing.items import BadItem
from cn_clip.preprocess.importing.json_arrays import iterate_array
from cn_clip.preprocess.importing.key_captions import join_words, read_key_captions, read_names
from cn_clip.preprocess.importing.tables import TableRow, TableShape, iterate_table
from cn_clip.preprocess.importing.text_lines import Encoding

# close to what is read, so that the search gets past the first line
PIECES = [
    b"image",
    b"caption",
    b",",
    b"\t",
    b"\r\n",
    b"\n",
    b"\r",
    b'"',
    b'""',
    b"a.jpg",
    b"\xef\xbb\xbf",
    b"\xff\xfe",
]
PIECES += [
    "图".encode(),
    "红".encode("gbk"),
    b"\0",
    b"{",
    b"}",
    b"[",
    b"]",
    b":",
    b"1",
    b"-",
    b'{"image":"a","caption":["b"]}',
]
PIECES += [b"#0 ", b"1#zhb#0", b" ", b"\xc3", b"\\ud800", b'{"images":[{}', b"1e999", b"image,caption\n"]
CONTENT = st.lists(st.sampled_from(PIECES) | st.binary(max_size=4), max_size=30).map(b"".join)
QUICK = settings(max_examples=300, deadline=None)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("bytes")


def drained(rows: Iterable[object]) -> list[object]:
    try:
        return list(rows)
    except DataError as error:
        assert "\n" not in str(error)
        return []


@QUICK
@given(
    content=CONTENT,
    suffix=st.sampled_from([".csv", ".tsv", ".jsonl", ".json"]),
    encoding=st.sampled_from(get_args(Encoding)),
    delimiter=st.sampled_from(["auto", "comma", "pipe"]),
    quotes=st.sampled_from(["auto", "double", "none"]),
)
def test_tables(
    folder: Path, content: bytes, suffix: str, encoding: Encoding, delimiter: str, quotes: str
) -> None:
    path = folder / f"c{suffix}"
    path.write_bytes(content)
    shape = TableShape(encoding=encoding, delimiter=delimiter, quotes=quotes)  # type: ignore[arg-type]  # drawn from the choices
    for row in drained(iterate_table(path, shape)):
        assert isinstance(row, TableRow | BadItem)
        if isinstance(row, TableRow):
            assert row.name and row.caption.strip() == row.caption != "" and row.row >= 1


@QUICK
@given(content=CONTENT)
def test_json_arrays(folder: Path, content: bytes) -> None:
    (folder / "x.json").write_bytes(content)
    drained(iterate_array(folder / "x.json", "images"))
    drained(iterate_array(folder / "x.json"))


@QUICK
@given(content=CONTENT)
def test_key_captions(folder: Path, content: bytes) -> None:
    (folder / "x.txt").write_bytes(content)
    drained(read_names(folder / "x.txt"))
    for line in drained(read_key_captions(folder / "x.txt")):
        if not isinstance(line, BadItem):
            join_words(line.caption)
