"""Which members of a sample are its picture and its captions: the same for a run that streams a tar and for an import of it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

PICTURES = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff", "avif", "jp2", "ppm")
"""Endings of pictures; of several in a sample the first of these is taken, whatever their order in the tar."""
_IN_JSON = "json."

Contents = Mapping[str, bytes]
"""Ending in lower case -> content."""


def caption_member(caption: str) -> str:
    """Ending of the member that holds the caption, where `caption` is an ending or json.FIELD."""
    return "json" if caption.startswith(_IN_JSON) else caption.lower()


def picture_of(contents: Contents) -> bytes:
    """The encoded picture; ValueError where there is none."""
    picture = next((contents[ending] for ending in PICTURES if ending in contents), None)
    if picture is None:
        raise ValueError(f"it has no picture (.{', .'.join(PICTURES[:4])}, ...)")
    return picture


def captions_of(contents: Contents, caption: str) -> list[str]:
    """One caption, or those of a list in a field; ValueError says what is wrong with them."""
    ending = caption_member(caption)
    if ending not in contents:
        raise ValueError(f"it has no .{ending} with a caption; set `caption` to the member that has it")
    found: object = _text(contents[ending], ending)
    if caption.startswith(_IN_JSON):
        field, fields = caption.removeprefix(_IN_JSON), fields_of(contents)
        if field not in fields:
            raise ValueError(f"its .json has no field {field!r}; set `caption` to the one with the caption")
        found = fields[field]
    values = found if isinstance(found, list) else [found]
    texts = [value.strip() for value in values if isinstance(value, str)]
    if not texts or len(texts) < len(values) or not all(texts):
        raise ValueError("its caption is empty, or no text")
    try:
        "".join(texts).encode()
    except UnicodeEncodeError as error:  # an escape in JSON can be half a character, which no tokenizer takes
        raise ValueError(f"its caption is no text ({error})") from error
    return texts


def fields_of(contents: Contents) -> dict[str, Any]:  # Any: whatever the JSON holds
    """Of the .json, none where it is another thing than an object; ValueError where it is broken."""
    try:
        fields = json.loads(_text(contents.get("json", b"{}"), "json"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"its .json is not JSON ({error})") from error
    return fields if isinstance(fields, dict) else {}


def _text(content: bytes, ending: str) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"its .{ending} is not UTF-8 ({error})") from error
