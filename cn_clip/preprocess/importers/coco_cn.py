"""COCO-CN as its authors ship it: the folder coco-cn-version1805v1.1, and the pictures of COCO 2014.

Taken as given, from https://github.com/li-xirong/coco-cn and programs that read the archive (which its authors give on request, and
which was not at hand): coco-cn_{train,val,test}.txt name a picture on each line (COCO_train2014_000000001234);
imageid.human-written-caption.txt has lines `COCO_train2014_000000001234#0`, a tab, the caption;
imageid.manually-translated-caption.txt likewise, for test only; imageid.machine-translated-caption.bosonseg.txt is cut into words, which are
joined again. Retrieval is usually reported on the human-written captions: 1,000 pictures and 1,053 captions in test. The pictures
COCO_*.jpg lie in one folder, or in train2014/ and val2014/ below it. The number in a name, which is COCO's image id, stays the id. `val`
is imported as `valid`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

from cn_clip.errors import DataError
from cn_clip.preprocess.importing.items import (
    BadItem,
    FileContent,
    Item,
    Part,
    Picture,
    Source,
    Text,
    require_file,
    require_folder,
)
from cn_clip.preprocess.importing.key_captions import join_words, read_key_captions, read_names
from cn_clip.preprocess.importing.own_splits import OwnSplits

NAMES = {"train": "coco-cn_train.txt", "valid": "coco-cn_val.txt", "test": "coco-cn_test.txt"}
CAPTIONS = {
    "human-written": "imageid.human-written-caption.txt",
    "manually-translated": "imageid.manually-translated-caption.txt",
    "machine-translated": "imageid.machine-translated-caption.bosonseg.txt",
}


@dataclass(frozen=True, kw_only=True)
class Options(OwnSplits):
    data_dir: Path
    """folder of coco-cn_train.txt and the other files"""
    image_dir: Path
    """folder of COCO 2014's pictures, or of train2014/ and val2014/"""
    captions: Literal["human-written", "manually-translated", "machine-translated"] = "human-written"
    """which captions; the manually translated ones are of test only"""


def build(options: Options) -> Source:
    require_folder(options.data_dir, "--data-dir", "the unpacked COCO-CN")
    require_folder(options.image_dir, "--image-dir", "COCO 2014's pictures")
    captions = options.data_dir / CAPTIONS[options.captions]
    require_file(captions, "--captions", "a kind that the folder has")
    there = [split for split, name in NAMES.items() if (options.data_dir / name).is_file()]
    splits = options.chosen(there, options.data_dir)
    parts = []
    for split in splits:
        names = options.data_dir / NAMES[split]
        parts.append(Part(names.name, partial(_pictures, names, options.image_dir, split), (names,)))
    chosen = frozenset(name for split in splits for _, name in read_names(options.data_dir / NAMES[split]))
    parts.append(Part(captions.name, partial(_captions, captions, chosen), (captions,)))
    return Source(parts=parts, splits=splits, own_ids=True)


def _pictures(path: Path, image_dir: Path, split: str) -> Iterator[Item]:
    for row, name in read_names(path):
        where = f"{path} row {row}"
        key = _key(name)
        if key is None:
            yield BadItem(where, f"{name!r} does not end in a number of COCO's")
            continue
        if name != Path(name).name:
            yield BadItem(where, f"{name!r} is no name of a file in a folder of COCO's")
            continue
        content = FileContent(_picture_file(image_dir, name))
        yield Picture(key, content, where, name=f"{name}.jpg", split=split)


def _key(name: str) -> str | None:
    number = name.rpartition("_")[2]
    if not (number.isascii() and number.isdecimal()):
        return None
    return number.lstrip("0") or "0"


def _picture_file(image_dir: Path, name: str) -> Path:
    below = image_dir / ("val2014" if "val2014" in name else "train2014") / f"{name}.jpg"
    return below if below.is_file() else image_dir / f"{name}.jpg"


def _captions(path: Path, chosen: frozenset[str]) -> Iterator[Item]:
    is_segmented = "bosonseg" in path.name
    for line in read_key_captions(path):
        if isinstance(line, BadItem):
            yield line
        elif line.picture in chosen:  # the file holds those of all splits
            key = _key(line.picture)
            if key is None:
                raise DataError(f"{line.where}: {line.picture!r} does not end in a number of COCO's")
            yield Text(join_words(line.caption) if is_segmented else line.caption, (key,), line.where)
