"""What stands in a store, byte for byte: the one place that knows both formats.

| folder | key | format 2 (ours) | format 1 (the reference's) |
|---|---|---|---|
| pairs | ascii `0` … `N-1` | JSON `[image_id, text_id, caption]`, or with a list of hard negatives after it | pickle of `(image_id, text_id, caption)` |
| pairs | `columns:0`, `columns:1`, … | int64 LE (3, n): image ids, text ids, caption keys of 65,536 pairs each; XXH3-32 | none |
| pairs | `num_samples` | a sentence for the old program | ascii N |
| imgs, imgs-00001, … | ascii image id | the encoded picture as it came (JPEG, PNG, …) | its base64 text; one folder |
| imgs, imgs-00001, … | `num_images` | a sentence for the old program | ascii number of pictures |
| index | ascii image id | width, height, bytes, number of its imgs folder: uint32 LE; XXH3-128 of the picture | none |
| tokens | ascii pair number | uint16 LE token ids, uncut, without [CLS] and [SEP]; XXH3-32 | none |
| all | `meta` | JSON `{"format": …, "version": 2, "count": N, …}` | none |

XXH3-128 and XXH3-32 are of the bytes before them, the second being the low half of XXH3-64, little-endian.
`index` and `tokens` may be missing. Further fields of `meta`, for the readers to hold the folders of a split together:
`content` (pairs, imgs: digest of what was written), `columns` (pairs: rows of each), `shard` (imgs: its number),
`shards` (index: count and content of each imgs folder), `tokenizer` and `pairs` (tokens: fingerprint of the tokenizer,
content of the pairs).

Readers ignore fields of `meta` they do not know; a change that an older reader must not ignore raises `version`.
"""

from __future__ import annotations

import binascii
import json
import pickle
import re
import struct
import sys
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pybase64
from numpy.typing import NDArray
from xxhash import xxh3_64_intdigest

from cn_clip.data.captions import MAX_ID
from cn_clip.data.store.old_pickle import read_flat_pickle
from cn_clip.data.table_format import STANDARD_ALPHABET
from cn_clip.errors import ConfigError

Format = Literal["v2", "reference"]

PAIRS_FOLDER = "pairs"
IMAGES_FOLDER = "imgs"
INDEX_FOLDER = "index"
TOKENS_FOLDER = "tokens"
_SHARD_NAME = re.compile(rf"{IMAGES_FOLDER}(-\d{{5,}})?")

VERSION = 2
PAIRS_FORMAT = "cn_clip pairs"
IMAGES_FORMAT = "cn_clip images"
INDEX_FORMAT = "cn_clip index"
TOKENS_FORMAT = "cn_clip tokens"
FOLDERS = {
    PAIRS_FORMAT: PAIRS_FOLDER,
    IMAGES_FORMAT: IMAGES_FOLDER,
    INDEX_FORMAT: INDEX_FOLDER,
    TOKENS_FORMAT: TOKENS_FOLDER,
}
"""Where in a split each kind lies; pictures may lie in more folders."""
META_KEY = b"meta"
COUNT_KEYS = {PAIRS_FORMAT: b"num_samples", IMAGES_FORMAT: b"num_images"}
STOP_SENTENCE = (
    b"this store has format 2 of cn_clip, which cn-clip 1.x cannot read: "
    b"build it again with build_lmdb_dataset.py --format reference, or read it with cn_clip 2 or newer"
)
"""Stands where the reference expects a number, so that its `int()` stops and shows it."""
COLUMNS_ROWS = 65_536

_CHECK_BYTES = 4
_FACTS = struct.Struct("<IIII16s")
_to_json = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode
_to_ascii_json = json.JSONEncoder(separators=(",", ":")).encode


@dataclass(frozen=True, slots=True)
class PictureFacts:
    """What the index knows of a picture."""

    width_px: int
    """0 when it was not measured, like the height."""
    height_px: int
    num_bytes: int
    """Of the encoded picture."""
    shard: int
    """Number of the imgs folder it lies in."""
    digest: bytes
    """XXH3-128 of the encoded picture, 16 bytes."""


@dataclass(frozen=True, slots=True)
class ShardFacts:
    """What the index knows of an imgs folder."""

    count: int
    """Its pictures."""
    content: str | None
    """Digest of what was written; None for one from before there were any."""


def shard_folder(shard: int) -> str:
    """Name of the imgs folder with this number."""
    return IMAGES_FOLDER if shard == 0 else f"{IMAGES_FOLDER}-{shard:05d}"


def is_shard_folder(name: str) -> bool:
    return _SHARD_NAME.fullmatch(name) is not None


def is_folder_of_split(name: str) -> bool:
    return name in (PAIRS_FOLDER, INDEX_FOLDER, TOKENS_FOLDER) or is_shard_folder(name)


def number_key(number: int) -> bytes:
    """Key of pair `number`, or of the picture with this id; both formats agree."""
    return b"%d" % number


def columns_key(block: int) -> bytes:
    return b"columns:%d" % block


def encode_meta(kind: str, count: int, **fields: object) -> bytes:
    return json.dumps({"format": kind, "version": VERSION, "count": count, **fields}).encode()


def encode_pair(
    image_id: int, text_id: int, caption: str, store_format: Format, hard_negatives: Sequence[str] = ()
) -> bytes:
    """ConfigError for hard negatives in the reference's format."""
    if store_format == "reference":
        if hard_negatives:
            raise ConfigError(
                f"the reference's format has no place for hard_negatives (text id {text_id}): build with --format v2, or "
                "take them out of the captions"
            )
        # protocol 4 is what Python 3.8 to 3.13 write by default
        return pickle.dumps((image_id, text_id, caption), protocol=4)
    record: list[object] = [image_id, text_id, caption]
    if hard_negatives:
        record.append(list(hard_negatives))
    try:
        return _to_json(record).encode()
    except UnicodeEncodeError:  # half of a surrogate pair has no UTF-8, but it does have a JSON escape
        return _to_ascii_json(record).encode()


def decode_pair(value: bytes) -> tuple[int, int, str, tuple[str, ...]]:
    """(image id, text id, caption, hard negatives) of a format 2 value; ValueError for anything else."""
    record = json.loads(value)
    match record:
        case [int(image_id), int(text_id), str(caption)]:
            return _checked_id(image_id), _checked_id(text_id), caption, ()
        case [int(image_id), int(text_id), str(caption), [*texts]] if all(type(t) is str for t in texts):
            return _checked_id(image_id), _checked_id(text_id), caption, tuple(texts)
    raise ValueError(f"not [image id, text id, caption] but {record!r:.80}")


def decode_reference_pair(value: bytes) -> tuple[int, int, str, tuple[str, ...]]:
    """(image id, text id, caption, no hard negatives) of a format 1 value, nothing executed; ValueError for anything else.

    Ids and captions of the wrong kind are taken where their meaning is certain: the reference stored what the JSONL held.
    """
    image_id, text_id, caption = read_flat_pickle(value)
    return _checked_id(int(image_id)), _checked_id(int(text_id)), str(caption), ()


def _checked_id(number: int) -> int:
    """The reference wrote ids of any size, which no column and no tensor holds."""
    if abs(number) > MAX_ID:
        raise ValueError(f"the id {number!r:.40} is not a whole number of 64 bits")
    return number


def encode_columns(*columns: array[int]) -> bytes:
    return _with_check(np.array(columns, dtype="<i8").tobytes())


def decode_columns(value: bytes) -> NDArray[np.int64]:
    """(3, n) image ids, text ids, caption keys; ValueError when they are not what was written."""
    return np.frombuffer(_without_check(value), dtype="<i8").astype(np.int64, copy=False).reshape(3, -1)


def encode_picture(picture: bytes, store_format: Format) -> bytes:
    return picture if store_format == "v2" else pybase64.b64encode(picture)


def decode_reference_picture(value: bytes) -> bytes:
    """The encoded picture from standard or url-safe base64, as lenient as the reference; ValueError when it is neither."""
    try:
        return pybase64.b64decode(value, validate=True)
    except binascii.Error:
        return binascii.a2b_base64(value.translate(STANDARD_ALPHABET))


def encode_facts(facts: PictureFacts) -> bytes:
    return _FACTS.pack(facts.width_px, facts.height_px, facts.num_bytes, facts.shard, facts.digest)


def decode_facts(value: bytes) -> PictureFacts:
    """ValueError when the bytes are not so many."""
    if len(value) != _FACTS.size:
        raise ValueError(f"{len(value)} bytes, not {_FACTS.size}")
    return PictureFacts(*_FACTS.unpack(value))


def encode_tokens(token_ids: Sequence[int]) -> bytes:
    """OverflowError for an id that 16 bits do not hold."""
    tokens = array("H", token_ids)
    if sys.byteorder == "big":
        tokens.byteswap()
    return _with_check(tokens.tobytes())


def decode_tokens(value: bytes) -> NDArray[np.uint16]:
    """ValueError when they are not what was written."""
    return np.frombuffer(_without_check(value), dtype="<u2").astype(np.uint16)


def _with_check(value: bytes) -> bytes:
    return value + xxh3_64_intdigest(value).to_bytes(8, "little")[:_CHECK_BYTES]


def _without_check(value: bytes) -> bytes:
    content = value[:-_CHECK_BYTES]
    if _with_check(content) != value:
        raise ValueError("the value is damaged")
    return content
