"""Captions as the authors of Flickr30k-CN and COCO-CN write them: a line is `PICTURE#NUMBER`, white space, the caption."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from cn_clip.errors import DataError
from cn_clip.preprocess.importing.items import BadItem
from cn_clip.preprocess.importing.text_lines import TextLines, UndecodableError

_TAGGED = re.compile(r"(.+):[A-Za-z]+")
"""A word and its part of speech, as BosonNLP's segmenter writes them: `警车:n`, `，:wd`."""


@dataclass(frozen=True, slots=True)
class KeyCaption:
    """One line."""

    picture: str
    caption: str
    where: str


def read_key_captions(path: Path) -> Iterator[KeyCaption | BadItem]:
    """Each line in file order; blank lines are passed over."""
    lines = TextLines(path)
    for line in lines.or_bad():
        if isinstance(line, BadItem):
            yield line
            continue
        where = lines.where
        key, *rest = line.strip().split(maxsplit=1)
        picture = key.partition("#")[0]
        if not rest or not picture or picture == key:
            yield BadItem(where, "not of the form PICTURE#NUMBER CAPTION")
        else:
            yield KeyCaption(picture, rest[0], where)


def join_words(segmented: str) -> str:
    """The caption that was cut into words: tags of parts of speech taken off where every word has one, spaces taken out.

    A space stays between two words of letters or digits: `穿 T 恤` is `穿T恤`, but `New York 的` is `New York的`.
    """
    words = segmented.split()
    tagged = [_TAGGED.fullmatch(word) for word in words]
    plain = [found[1] for found in tagged if found is not None]
    if len(plain) == len(words):
        words = plain
    joined = ""
    for word in words:
        if joined and _is_latin(joined[-1]) and _is_latin(word[0]):
            joined += " "
        joined += word
    return joined


def _is_latin(character: str) -> bool:
    return character.isascii() and character.isalnum()


def read_names(path: Path) -> Iterator[tuple[int, str]]:
    """(line, from 1, name) of each picture of a split, one per line. DataError when the file is no text."""
    lines = TextLines(path)
    try:
        for line in lines:
            if line.strip():
                yield lines.row, line.strip()
    except UndecodableError as error:
        raise DataError(f"{path} row {lines.row}: {error}") from error
