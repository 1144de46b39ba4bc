"""Flickr30k-CN as its authors ship it: the folders of flickr30k-cn.tar.gz, and Flickr30k's own pictures.

Taken as given, from the archive that https://github.com/li-xirong/cross-lingual-cap links to, as several programs that read it have it
(the archive itself was not at hand): the folders flickr30kzhbbosontrain, flickr30kzhbbosonval and flickr30kzhmbosontest; in each,
ImageSets/FOLDER.txt has a picture's number on each line, and TextData/seg.FOLDER.caption.txt has lines such as
`1000092795#zhb#0 两个 年轻 人 …`, cut into words by BosonNLP. train and val are machine translations (zhb), test is by hand (zhm), its
words with their part of speech (`男子:n`), which is taken off. Words are joined again without spaces. Pictures are NUMBER.jpg; the
number stays the id. `val` is imported as `valid`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from cn_clip.preprocess.importing.items import (
    BadItem,
    FileContent,
    Item,
    Part,
    Picture,
    Source,
    Text,
    require_folder,
)
from cn_clip.preprocess.importing.key_captions import join_words, read_key_captions, read_names
from cn_clip.preprocess.importing.own_splits import OwnSplits

FOLDERS = {
    "train": "flickr30kzhbbosontrain",
    "valid": "flickr30kzhbbosonval",
    "test": "flickr30kzhmbosontest",
}


@dataclass(frozen=True, kw_only=True)
class Options(OwnSplits):
    data_dir: Path
    """folder of the folders flickr30kzhbbosontrain, flickr30kzhbbosonval, flickr30kzhmbosontest"""
    image_dir: Path
    """folder of Flickr30k's pictures, NUMBER.jpg"""


def build(options: Options) -> Source:
    require_folder(options.data_dir, "--data-dir", "the unpacked flickr30k-cn.tar.gz")
    require_folder(options.image_dir, "--image-dir", "Flickr30k's pictures")
    files = {split: _files(options.data_dir / folder) for split, folder in FOLDERS.items()}
    there = [split for split, paths in files.items() if all(path.is_file() for path in paths)]
    splits = options.chosen(there, options.data_dir)
    parts = []
    for split in splits:
        names, captions = files[split]
        parts.append(Part(names.name, partial(_pictures, names, options.image_dir, split), (names,)))
        parts.append(Part(captions.name, partial(_captions, captions), (captions,)))
    return Source(parts=parts, splits=splits, own_ids=True)


def _files(folder: Path) -> tuple[Path, Path]:
    return folder / "ImageSets" / f"{folder.name}.txt", folder / "TextData" / f"seg.{folder.name}.caption.txt"


def _pictures(path: Path, image_dir: Path, split: str) -> Iterator[Item]:
    for row, number in read_names(path):
        number = number.removesuffix(".jpg")
        name = f"{number}.jpg"
        if name != Path(name).name:
            yield BadItem(f"{path} row {row}", f"{number!r} is no number of a picture")
            continue
        yield Picture(number, FileContent(image_dir / name), f"{path} row {row}", name=name, split=split)


def _captions(path: Path) -> Iterator[Item]:
    for line in read_key_captions(path):
        if isinstance(line, BadItem):
            yield line
        else:
            yield Text(join_words(line.caption), (line.picture.removesuffix(".jpg"),), line.where)
