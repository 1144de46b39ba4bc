"""Which columns of a table hold pictures, captions and names: as asked for, or by their usual names, whatever their case."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from cn_clip.data.tars.members import PICTURES
from cn_clip.errors import DataError

IMAGE_FILE_COLUMNS = (
    *("image", "img", "picture", "image_id", "image_path", "img_path", "file_name", "filename"),
    *(
        "filepath",
        "file_path",
        "path",
        "file",
        "图片",
        "图像",
        "文件名",
        "文件",
        "图片路径",
        "图像路径",
        "图片名",
    ),
)
"""Of files of pictures."""
IMAGE_COLUMNS = ("image", "jpg", "jpeg", "png", "webp", "img", "picture", "图片", "图像")
"""Of pictures themselves."""
CAPTION_COLUMNS = (
    *("caption", "captions", "text", "txt", "title", "description", "sentence", "sentences"),
    *("标题", "文本", "描述", "文字", "说明", "图片描述"),
)
_PICTURE_ENDINGS = tuple(f".{ending}" for ending in PICTURES)
_MAX_SHOWN = 60


@dataclass(frozen=True)
class Wanted:
    """A column that a table should have."""

    flag: str
    """That names it."""
    name: str | None
    """What the flag says."""
    usual: Sequence[str] = ()
    """Names of which the table should have just one, where the flag says nothing."""


def find_columns(there: Sequence[str], wanted: Sequence[Wanted], noun: str = "column") -> list[int]:
    """Place of each wanted column among those that are there. One DataError for all that are not found, with the flags to set."""
    found = [_places(there, column) for column in wanted]
    missing = [(column, places) for column, places in zip(wanted, found, strict=True) if len(places) != 1]
    if missing:
        raise DataError(_fault(there, missing, noun))
    places = [only for (only,) in found]
    for number, place in enumerate(places):
        if place in places[:number]:
            flags = f"{wanted[places.index(place)].flag} and {wanted[number].flag}"
            raise DataError(f"{flags} are both {there[place]!r}; give two columns")
    return places


def _places(there: Sequence[str], column: Wanted) -> list[int]:
    if column.name is not None:
        exact = [place for place, name in enumerate(there) if name == column.name]
        if exact:
            return exact
    usual = {name.casefold() for name in ((column.name,) if column.name is not None else column.usual)}
    return [place for place, name in enumerate(there) if name.casefold() in usual]


def _fault(there: Sequence[str], missing: Iterable[tuple[Wanted, list[int]]], noun: str) -> str:
    faults, flags = [], []
    for column, places in missing:
        names = [there[place] for place in places]
        if names and len(set(names)) == 1:
            return f"{len(names)} {noun}s are named {names[0]!r}; rename all but one"
        if names:
            faults.append(f"several {noun}s could be meant ({', '.join(names)})")
        else:
            faults.append(
                f"there is no {noun} {column.name!r}" if column.name else f"no {noun} has a usual name"
            )
        flags.append(column.flag)
    each = ", each" if len(flags) > 1 else ""
    return f"{', '.join(dict.fromkeys(faults))}; set {' and '.join(flags)}{each} to one of: {_shown(there)}"


def _shown(names: Sequence[str]) -> str:
    shown = ", ".join(names)
    return shown if len(shown) <= _MAX_SHOWN else f"{shown[: _MAX_SHOWN - 1]}…"


def names_a_picture(cell: str) -> bool:
    return cell.lower().endswith(_PICTURE_ENDINGS)


def looks_like_a_row(first_line: Sequence[str]) -> str:
    """What to do where the line that should name the columns holds a picture already, "" where it does not."""
    pictures = [place for place, cell in enumerate(first_line, start=1) if names_a_picture(cell)]
    if len(pictures) != 1:
        return ""
    caption = 3 - pictures[0] if len(first_line) == 2 else "N"
    return (
        "it looks like a row, not like names of columns; give --no-header "
        f"--image-column {pictures[0]} --caption-column {caption}"
    )
