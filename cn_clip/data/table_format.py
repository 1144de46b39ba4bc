"""What the rows of `{split}_imgs.tsv` and `{split}_texts.jsonl` have in common, for those who write and read them."""

from __future__ import annotations

import binascii

import pybase64

PICTURES_SUFFIX, CAPTIONS_SUFFIX = "_imgs.tsv", "_texts.jsonl"
"""Behind the name of the split."""
BOM = b"\xef\xbb\xbf"
"""Byte order mark of UTF-8, which some programs put before the first row."""
MAX_ROW_BYTES = 512 << 20
"""No row is longer: a file without line ends must not be read into memory whole."""
STANDARD_ALPHABET = bytes.maketrans(b"-_", b"+/")
"""Table for `bytes.translate`: URL-safe base64 in the standard alphabet."""


def decode_base64(text: bytes | memoryview) -> bytes:
    """Strict in all but the alphabet, which may be the standard or the URL-safe one; binascii.Error, a ValueError."""
    try:
        return pybase64.b64decode(text, validate=True)
    except binascii.Error:
        text = bytes(text).translate(STANDARD_ALPHABET)
    try:
        return pybase64.b64decode(text, validate=True)
    except binascii.Error:
        return binascii.a2b_base64(text, strict_mode=True)  # slower, but it knows the reason
