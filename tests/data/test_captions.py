"""Captions of a JSONL, and what a bad row gets."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cn_clip.data.bad_rows import BadRow
from cn_clip.data.captions import (
    Caption,
    caption_key,
    preprocess_text,
    read_caption_row,
    read_caption_rows,
    read_captions,
)
from cn_clip.errors import DataError

ROOT = Path(__file__).resolve().parents[2]
GOOD = b'{"text_id": 8, "text": "\xe7\x8c\xab", "image_ids": [17, 21]}'


def read(tmp_path: Path, content: bytes, **settings: bool) -> list[Caption]:
    path = tmp_path / "train_texts.jsonl"
    path.write_bytes(content)
    return list(read_captions(path, **settings))


def test_rows_in_file_order(tmp_path: Path) -> None:
    rows = read(tmp_path, GOOD + b'\n{"text_id": 7, "text": "b", "image_ids": [], "extra": 1}')
    assert rows == [Caption(8, "猫", (17, 21), 1), Caption(7, "b", (), 2)]


def test_bom_windows_line_ends_and_blank_lines(tmp_path: Path) -> None:
    rows = read(tmp_path, b"\xef\xbb\xbf" + GOOD + b"\r\n\r\n  \n" + GOOD + b"\r\n\n")
    assert [caption.row for caption in rows] == [1, 4]


@pytest.mark.parametrize("end", ["\n", "\u3000\n", "\x85", "\x1c\r\n"])
def test_a_row_may_end_in_any_white_space(end: str) -> None:
    assert read_caption_row(GOOD + end.encode(), 3, Path("a")) == Caption(8, "猫", (17, 21), 3)


def test_one_row_gets_the_sentence_of_the_file() -> None:
    bad = read_caption_row(b'{"text_id": 1, "text": "a"}\n', 3, Path("a"))
    assert isinstance(bad, BadRow) and str(bad).startswith("a row 3: field image_ids is missing")
    assert read_caption_row(b'{"text_id": 1, "text": "a"}\n', 3, Path("a"), labelled=False) == Caption(
        1, "a", (), 3
    )
    cut = read_caption_row(GOOD[:-1], 3, Path("a"))
    assert isinstance(cut, BadRow) and cut.is_unended


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (GOOD[:-4], "row 2 .the last line, which may be cut., column 46: not JSON"),
        (GOOD[:-4] + b"\n" + GOOD, "row 2, column 46: not JSON"),
        (b"[1, 2]", "row 2: not an object"),
        (b'{"text": "a", "image_ids": []}', "row 2: field text_id is missing"),
        (b'{"text_id": 1, "image_ids": []}', "row 2: field text is missing"),
        (b'{"text_id": 1, "text": "a"}', "row 2: field image_ids is missing"),
        (
            b'{"text_id": "1", "text": "a", "image_ids": []}',
            "row 2, field text_id: '1' is not a whole number",
        ),
        (b'{"text_id": 1.0, "text": "a", "image_ids": []}', "row 2, field text_id: 1.0 is not"),
        (b'{"text_id": true, "text": "a", "image_ids": []}', "row 2, field text_id: True is not"),
        (b'{"text_id": 9223372036854775808, "text": "a", "image_ids": []}', "64 bits"),
        (b'{"text_id": 1' + b"0" * 5000 + b', "text": "a", "image_ids": []}', "row 2: cannot be read"),
        (b'{"text_id": 1, "text": ["a"], "image_ids": []}', r"row 2, field text: \['a'\] is not a text"),
        (b'{"text_id": 1, "text": null, "image_ids": []}', "row 2, field text: None is not a text"),
        (b'{"text_id": 1, "text": "a", "image_ids": 5}', "row 2, field image_ids: 5 is not a list"),
        (
            b'{"text_id": 1, "text": "a", "image_ids": ["5"]}',
            "row 2, field image_ids: '5' is not a whole number",
        ),
        (
            b'{"text_id": 1, "text": "a", "image_ids": ["007"]}',
            "'007' is not a whole number of 64 bits; ids must be numbers without quotes and leading zeros",
        ),
        (
            b'{"text_id": 1, "text": "a", "image_ids": [5, 007]}\n',
            "row 2, column 47: not JSON .a number has leading zeros, which are not allowed.",
        ),
        (
            b'{"text_id": -00, "text": "a", "image_ids": []}\n',
            "column 15: not JSON .a number has leading zeros",
        ),
        (b'{"text_id": 0 0, "text": "a", "image_ids": []}\n', "column 15: not JSON .Expecting"),
        (b'{"text_id": 1, "text": "\xff", "image_ids": []}', "row 2, column 25: not UTF-8"),
        (b"[" * 100_000, "row 2: cannot be read"),
    ],
)
def test_a_bad_row_is_named(tmp_path: Path, line: bytes, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        read(tmp_path, GOOD + b"\n" + line)
    assert "train_texts.jsonl" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_number_is_a_caption(tmp_path: Path) -> None:
    assert read(tmp_path, b'{"text_id": 1, "text": 2024, "image_ids": []}')[0].text == "2024"


def test_unlabelled_rows_need_no_image_ids(tmp_path: Path) -> None:
    assert read(tmp_path, b'{"text_id": 1, "text": "a"}', labelled=False) == [Caption(1, "a", (), 1)]


def test_a_missing_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere\.jsonl: No such file"):
        list(read_captions(tmp_path / "nowhere.jsonl"))


def test_quotes_and_capitals_are_made_plain() -> None:
    assert preprocess_text("“Ｔ-Shirt” ‘A’") == '"ｔ-shirt" ‘a’'


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["text_id", "text", "image_ids"]), inner)
    ),
)


_GOOD_TEXT = GOOD.decode()
_SPOILT = st.builds(
    lambda place, piece, length: _GOOD_TEXT[:place] + piece + _GOOD_TEXT[place + length :],
    st.integers(0, len(_GOOD_TEXT)),
    st.text(max_size=4) | st.sampled_from(["007", "1e999", "\\ud800", "NaN", "[[", "9" * 30]),
    st.integers(0, 6),
)


@pytest.mark.slow
@settings(max_examples=10_000, deadline=None)
@given(
    st.binary(max_size=80)
    | _JSON.map(lambda value: json.dumps(value).encode())
    | _SPOILT.map(lambda text: text.encode("utf-8", "surrogatepass"))
)
def test_any_row_is_a_caption_or_a_bad_row(tmp_path_factory: pytest.TempPathFactory, line: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzzed_texts.jsonl"
    path.write_bytes(line)
    rows = list(read_caption_rows(path))
    assert len(rows) <= line.count(b"\n") + 1
    for row in rows:
        if isinstance(row, BadRow):
            assert str(row).startswith(f"{path} row ") and "\n" not in str(row)
        else:
            assert type(row.text_id) is int and type(row.text) is str
            assert all(type(image_id) is int for image_id in row.image_ids)


def test_keys_of_captions_agree_between_processes_and_fit_int64() -> None:
    """Ranks compare them, and Python's own hash differs from process to process."""
    code = "from cn_clip.data.captions import caption_key; print(*map(caption_key, '一只猫 x'.split()), caption_key('\\ud83d'))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    keys = [caption_key(caption) for caption in ("一只猫", "x", "\ud83d")]
    assert done.stdout.split() == [str(key) for key in keys]
    assert len(set(keys)) == 3
    assert torch.tensor(keys).dtype is torch.int64


def test_captions_that_are_equal_to_the_model_have_one_key() -> None:
    assert caption_key("A “Red” Dog") == caption_key('a "red" dog') != caption_key("a red dog")
