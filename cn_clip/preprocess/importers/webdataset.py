"""Tars of samples, as img2dataset and webdataset write them: KEY.jpg, KEY.txt and KEY.json after one another.

Taken as given, from https://github.com/rom1504/img2dataset and https://github.com/webdataset/webdataset: members whose paths are equal up
to the first dot of the file name are one sample, and stand together. The picture is the member with a picture's ending, the caption the
.txt, or a field of the .json with `--caption json.FIELD` (a list there is several captions). Tars may be addresses that fsspec opens. A
picture is named TAR/KEY, since keys may come again in other tars. Samples without a picture or a caption are bad rows: img2dataset writes
an empty .txt where a row had no caption.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from cn_clip.data.tars.samples import read_samples
from cn_clip.data.tars.shards import find_shards, is_remote
from cn_clip.errors import ConfigError, DataError
from cn_clip.preprocess.importing.items import BadItem, BytesContent, Item, Part, Picture, Source, Text
from cn_clip.preprocess.importing.split_choice import SplitChoice

_COMPRESSED = (".gz", ".tgz", ".bz2", ".xz", ".zst")
_PICTURES = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff", "avif")


@dataclass(frozen=True, kw_only=True)
class Options(SplitChoice):
    tars: tuple[str, ...]
    """tars, folders of tars, or patterns such as 'data/{00000..00041}.tar'"""
    caption: str = "txt"
    """ending of the member that is the caption, or json.FIELD"""


def build(options: Options) -> Source:
    urls = find_shards(options.tars, "--tars")
    for url in urls:
        if url.endswith(_COMPRESSED):
            raise ConfigError(f"--tars: {url} is compressed: unpack it to a .tar first")
    stems = [url.rpartition("/")[2].removesuffix(".tar") for url in urls]
    stem, count = Counter(stems).most_common(1)[0]
    if count > 1:
        raise ConfigError(
            f"--tars gives {count} tars named {stem}.tar, after which pictures are named: import them apart"
        )
    parts = [
        Part(
            f"{stem}.tar", partial(_items, url, stem, options.caption), () if is_remote(url) else (Path(url),)
        )
        for url, stem in zip(urls, stems, strict=True)
    ]
    return Source(parts=parts, splits=options.names(), choice=options)


def _items(url: str, stem: str, caption: str) -> Iterator[Item]:
    ending = caption.partition(".")[0]
    try:
        for sample in read_samples(url, lambda number: True, (*_PICTURES, ending)):
            if sample is not None:
                yield from _sample(f"{url}, {sample.key}", f"{stem}/{sample.key}", sample.contents, caption)
    except DataError as error:
        yield BadItem(url, f"{error}; fetch or pack it again")


def _sample(where: str, name: str, contents: Mapping[str, bytes], caption: str) -> Iterator[Item]:
    picture = next((contents[ending] for ending in _PICTURES if ending in contents), None)
    if picture is None:
        yield BadItem(where, "it has no picture")
        return
    try:
        captions = _captions(contents, caption)
    except ValueError as error:
        yield BadItem(where, str(error))
        return
    yield Picture(name, BytesContent(picture), where)
    for text in captions:
        yield Text(text, (name,), where)


def _captions(contents: Mapping[str, bytes], caption: str) -> list[str]:
    """ValueError says what is wrong with them."""
    ending, _, field = caption.partition(".")
    if ending not in contents:
        raise ValueError(f"it has no .{ending}; say where the captions are with --caption")
    try:
        found: object = contents[ending].decode("utf-8-sig")
    except UnicodeDecodeError:
        raise ValueError(f"its .{ending} is not UTF-8") from None
    if field:
        found = _field(str(found), ending, field)
    values = found if isinstance(found, list) else [found]
    texts = [value.strip() for value in values if isinstance(value, str)]
    if not texts or len(texts) < len(values) or not all(texts):
        raise ValueError("its caption is empty, or no text")
    return texts


def _field(text: str, ending: str, field: str) -> object:
    try:
        fields = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"its .{ending} is not JSON ({error})") from None
    if not isinstance(fields, dict) or field not in fields:
        raise ValueError(f"its .{ending} has no field {field!r}; say where the captions are with --caption")
    value: object = fields[field]
    return value
