"""The files of the quickstart's data, written whole or not at all.

`{split}_imgs.tsv`, `{split}_texts.jsonl`, `zeroshot/label_cn.txt`, `zeroshot/templates.json`
and `zeroshot/test/<class number>/<image id>.png`.
"""

import base64
import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cn_clip.errors import DataError

LABELS = "label_cn.txt"


@dataclass(frozen=True, kw_only=True)
class Picture:
    """One picture of one split."""

    image_id: int
    png: bytes
    captions: tuple[str, ...]
    class_name: str | None
    """What zero-shot classification should answer, when it is one of the classes."""


def write_split(folder: Path, split: str, pictures: Sequence[Picture], first_text_id: int) -> int:
    """Write the pictures and their captions, equal captions as one text; the number of texts."""
    images = (f"{picture.image_id}\t{base64.b64encode(picture.png).decode()}\n" for picture in pictures)
    _write_atomically(folder / f"{split}_imgs.tsv", "".join(images))
    image_ids: dict[str, list[int]] = {}
    for picture in pictures:
        for caption in dict.fromkeys(picture.captions):
            image_ids.setdefault(caption, []).append(picture.image_id)
    lines = (
        json.dumps({"text_id": first_text_id + place, "text": text, "image_ids": ids}, ensure_ascii=False)
        + "\n"
        for place, (text, ids) in enumerate(image_ids.items())
    )
    _write_atomically(folder / f"{split}_texts.jsonl", "".join(lines))
    return len(image_ids)


def write_zeroshot(folder: Path, pictures: Sequence[Picture], class_names: Sequence[str]) -> int:
    """Write one numbered folder per class that has a picture, and the list of their names; the number of pictures."""
    present = {picture.class_name for picture in pictures}
    names = [name for name in class_names if name in present]
    digits = 3 if len(names) > 10 else 1  # the ELEVATER layout, as the evaluation reads it
    numbers = {name: f"{place:0{digits}d}" for place, name in enumerate(names)}
    if folder.exists() and not (folder / LABELS).is_file():
        raise DataError(f"{folder} is not a zero-shot set of this command: give --output-dir another folder")
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    classified = [(picture, picture.class_name) for picture in pictures if picture.class_name is not None]
    for picture, class_name in classified:
        path = partial / "test" / numbers[class_name] / f"{picture.image_id}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture.png)
    partial.mkdir(parents=True, exist_ok=True)
    (partial / LABELS).write_text("".join(f"{name}\n" for name in names), encoding="utf-8")
    # training captions hold class names as they are, so a prompt around them would only be new to the model
    (partial / "templates.json").write_text('["{}"]\n', encoding="utf-8")
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)
    return len(classified)


def _write_atomically(path: Path, text: str) -> None:
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)
