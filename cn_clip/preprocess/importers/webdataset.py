"""Tars of samples, as img2dataset and webdataset write them: KEY.jpg, KEY.txt and KEY.json after one another.

Taken as given, from https://github.com/rom1504/img2dataset and https://github.com/webdataset/webdataset: members whose paths are equal up
to the first dot of the file name are one sample, and stand together. The picture is the member with a picture's ending, the caption the
.txt, or a field of the .json with `--caption json.FIELD` (a list there is several captions); a training run that streams the tar has the
same ones. Tars may be addresses that fsspec opens. A picture is named TAR/KEY, since keys may come again in other tars. Samples without a
picture or a caption are bad rows: img2dataset writes an empty .txt where a row had no caption.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from cn_clip.data.tars.members import PICTURES, caption_member, captions_of, picture_of
from cn_clip.data.tars.samples import BrokenShardError, read_samples
from cn_clip.data.tars.shards import find_shards, is_remote
from cn_clip.errors import ConfigError
from cn_clip.preprocess.importing.items import BadItem, BytesContent, Item, Part, Picture, Source, Text
from cn_clip.preprocess.importing.lost_shards import lost_items
from cn_clip.preprocess.importing.split_choice import SplitChoice

_COMPRESSED = (".gz", ".tgz", ".bz2", ".xz", ".zst")


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
    parts = [_part(url, stem, options) for url, stem in zip(urls, stems, strict=True)]
    return Source(parts=parts, splits=options.names(), choice=options)


def _part(url: str, stem: str, options: Options) -> Part:
    items = partial(_items, url, stem, options.caption)
    if is_remote(url):
        return Part(f"{stem}.tar", items, url=url)
    return Part(f"{stem}.tar", items, (Path(url),))


def _items(url: str, stem: str, caption: str) -> Iterator[Item]:
    try:
        for sample in read_samples(url, lambda number: True, (*PICTURES, caption_member(caption))):
            if sample is not None:
                yield from _sample(f"{url}, {sample.key}", f"{stem}/{sample.key}", sample.contents, caption)
    except BrokenShardError as error:
        lost = lost_items(url, error.num_samples)
        yield BadItem(
            url,
            f"{error}; fetch or pack it again",
            num_lost=lost or 0,
            is_broken_part=True,
            is_counted=lost is not None,
        )


def _sample(where: str, name: str, contents: Mapping[str, bytes], caption: str) -> Iterator[Item]:
    try:
        picture, captions = picture_of(contents), captions_of(contents, caption)
    except ValueError as error:
        yield BadItem(where, str(error))
        return
    yield Picture(name, BytesContent(picture), where)
    for text in captions:
        yield Text(text, (name,), where)
