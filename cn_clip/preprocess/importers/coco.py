"""COCO's captions: one JSON with `images` and `annotations`, and the folder of the pictures.

Taken as given, from COCO's captions_{train,val}{2014,2017}.json: {"images": [{"id": 9, "file_name": "a.jpg"}], "annotations":
[{"id": 3, "image_id": 9, "caption": "…"}]}, other fields passed over. The ids of images and annotations stay the ids of pictures and
captions. Pictures without captions are imported too. The file is read twice, an object at a time.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from cn_clip.errors import DataError
from cn_clip.preprocess.importing.items import (
    BadItem,
    FileContent,
    Item,
    Part,
    Picture,
    Source,
    Text,
    name_below,
    require_file,
    require_folder,
)
from cn_clip.preprocess.importing.json_arrays import iterate_array
from cn_clip.preprocess.importing.split_choice import SplitChoice


@dataclass(frozen=True, kw_only=True)
class Options(SplitChoice):
    captions: Path
    """the JSON of captions"""
    image_dir: Path
    """folder that the picture files lie in"""


def build(options: Options) -> Source:
    require_file(options.captions, "--captions", "the JSON of captions")
    require_folder(options.image_dir, "--image-dir", "the pictures")
    parts = [
        Part(name, partial(read, options), (options.captions,))
        for name, read in (("images", _images), ("annotations", _annotations))
    ]
    return Source(parts=parts, splits=options.names(), choice=options, own_ids=True)


def _images(options: Options) -> Iterator[Item]:
    for number, image in enumerate(iterate_array(options.captions, "images")):
        where = f"{options.captions}, images[{number}]"
        match image:
            case {"id": int(image_id), "file_name": str(name)} if name and type(image_id) is int:
                yield _picture(str(image_id), name, options.image_dir, where)
            case _:
                yield BadItem(where, 'it needs "id", a whole number, and "file_name"')


def _picture(image_id: str, name: str, image_dir: Path, where: str) -> Item:
    try:
        content = FileContent(image_dir / name_below(image_dir, name), image_dir)
    except DataError as error:
        return BadItem(where, str(error))
    return Picture(image_id, content, where, name=name)


def _annotations(options: Options) -> Iterator[Item]:
    for number, annotation in enumerate(iterate_array(options.captions, "annotations")):
        where = f"{options.captions}, annotations[{number}]"
        match annotation:
            case {"image_id": int(image_id), "id": int(text_id), "caption": str(text)} if text.strip():
                yield Text(text.strip(), (str(image_id),), where, text_id=text_id)
            case _:
                yield BadItem(where, 'it needs "id" and "image_id", whole numbers, and "caption", a text')
