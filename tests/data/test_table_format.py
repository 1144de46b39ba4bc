"""Pictures as text, in either alphabet."""

from __future__ import annotations

import base64
import random

import pytest

from cn_clip.data.table_format import decode_base64


@pytest.mark.parametrize("size", [0, 1, 2, 3, 1000])
def test_both_alphabets(size: int) -> None:
    content = random.Random(size).randbytes(size)
    assert decode_base64(base64.b64encode(content)) == content
    assert decode_base64(memoryview(base64.urlsafe_b64encode(content))) == content


def test_both_alphabets_in_one_text() -> None:
    assert decode_base64(b"+-/_") == base64.b64decode(b"++//")


@pytest.mark.parametrize("text", [b"YWJ", b"YW Jj", b"YWJj\n", b"=YWJ", b"\xff\xff\xff\xff", b"YWJ#"])
def test_what_is_no_base64(text: bytes) -> None:
    with pytest.raises(ValueError):
        decode_base64(text)
