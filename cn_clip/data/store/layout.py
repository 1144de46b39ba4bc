"""What stands in a store, byte for byte: the one place that knows both formats.

| folder | key | format 2 (ours) | format 1 (the reference's) |
|---|---|---|---|
| pairs | ascii `0` … `N-1` | JSON `[image_id, text_id, caption]` | pickle of `(image_id, text_id, caption)` |
| pairs | `num_samples` | a sentence for the old program | ascii N |
| imgs | ascii image id | the encoded picture as it came (JPEG, PNG, …) | its base64 text |
| imgs | `num_images` | a sentence for the old program | ascii number of pictures |
| both | `meta` | JSON `{"format": …, "version": 2, "count": N, …}` | none |

Readers ignore fields of `meta` they do not know; a change that an older reader must not ignore raises `version`.
"""

from __future__ import annotations

import binascii
import json
import pickle
from typing import Literal

from cn_clip.data.store.old_pickle import read_flat_pickle

Format = Literal["v2", "reference"]

PAIRS_FOLDER = "pairs"
IMAGES_FOLDER = "imgs"

VERSION = 2
PAIRS_FORMAT = "cn_clip pairs"
IMAGES_FORMAT = "cn_clip images"
META_KEY = b"meta"
COUNT_KEYS = {PAIRS_FORMAT: b"num_samples", IMAGES_FORMAT: b"num_images"}
STOP_SENTENCE = (
    b"this store has format 2 of cn_clip, which cn-clip 1.x cannot read: "
    b"build it again with build_lmdb_dataset.py --format reference, or read it with cn_clip 2 or newer"
)
"""Stands where the reference expects a number, so that its `int()` stops and shows it."""

_STANDARD_ALPHABET = bytes.maketrans(b"-_", b"+/")


def number_key(number: int) -> bytes:
    """Key of pair `number`, or of the picture with this id; both formats agree."""
    return b"%d" % number


def encode_meta(kind: str, count: int) -> bytes:
    return json.dumps({"format": kind, "version": VERSION, "count": count}).encode()


def encode_pair(image_id: int, text_id: int, caption: str, store_format: Format) -> bytes:
    if store_format == "reference":
        # protocol 4 is what Python 3.8 to 3.13 write by default
        return pickle.dumps((image_id, text_id, caption), protocol=4)
    record = [image_id, text_id, caption]
    try:
        return json.dumps(record, ensure_ascii=False, separators=(",", ":")).encode()
    except UnicodeEncodeError:  # half of a surrogate pair has no UTF-8, but it does have a JSON escape
        return json.dumps(record, separators=(",", ":")).encode()


def decode_pair(value: bytes) -> tuple[int, int, str]:
    """(image id, text id, caption) of a format 2 value; ValueError for anything else."""
    record = json.loads(value)
    match record:
        case [int(image_id), int(text_id), str(caption)]:
            return image_id, text_id, caption
    raise ValueError(f"not [image id, text id, caption] but {record!r:.80}")


def decode_reference_pair(value: bytes) -> tuple[int, int, str]:
    """(image id, text id, caption) of a format 1 value, nothing executed; ValueError for anything else.

    Ids and captions of the wrong kind are taken where their meaning is certain: the reference stored what the JSONL held.
    """
    image_id, text_id, caption = read_flat_pickle(value)
    return int(image_id), int(text_id), str(caption)


def encode_picture(picture: bytes, store_format: Format) -> bytes:
    return picture if store_format == "v2" else binascii.b2a_base64(picture, newline=False)


def decode_reference_picture(value: bytes) -> bytes:
    """The encoded picture from standard or url-safe base64, as lenient as the reference; ValueError when it is neither."""
    return binascii.a2b_base64(value.translate(_STANDARD_ALPHABET))
