"""MUGE's retrieval data as shipped: MR_{split}_imgs.tsv and MR_{split}_queries.jsonl in one folder.

Taken as given, from the description of the data set (https://tianchi.aliyun.com/dataset/107332): Multimodal_Retrieval.zip holds, for
train, valid and test, a TSV of item id, a tab and the picture in base64 (their reader takes the URL-safe alphabet), and a JSONL of
{"query_id": 8428, "query_text": "…", "item_ids": [1076345, 517602]}; the test queries have no item_ids. Item and query ids are whole
numbers and stay the ids. A query of several items stays one caption of several pictures.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from cn_clip.data.table_format import BOM, MAX_ROW_BYTES
from cn_clip.errors import DataError
from cn_clip.preprocess.importing.items import (
    BadItem,
    Base64Content,
    Item,
    Part,
    Picture,
    Source,
    Text,
    require_folder,
)
from cn_clip.preprocess.importing.own_splits import OwnSplits
from cn_clip.preprocess.importing.text_lines import TextLines

SPLITS = ("train", "valid", "test")


@dataclass(frozen=True, kw_only=True)
class Options(OwnSplits):
    data_dir: Path
    """folder of the MR_ files"""


def build(options: Options) -> Source:
    require_folder(options.data_dir, "--data-dir", "the MR_ files")
    there = [split for split in SPLITS if all(path.is_file() for path in _files(options.data_dir, split))]
    splits = options.chosen(there, options.data_dir)
    parts = []
    for split in splits:
        pictures, queries = _files(options.data_dir, split)
        parts.append(Part(pictures.name, partial(_pictures, pictures, split), (pictures,)))
        parts.append(Part(queries.name, partial(_queries, queries, split), (queries,)))
    return Source(parts=parts, splits=splits, own_ids=True)


def _files(folder: Path, split: str) -> tuple[Path, Path]:
    return folder / f"MR_{split}_imgs.tsv", folder / f"MR_{split}_queries.jsonl"


def _pictures(path: Path, split: str) -> Iterator[Item]:
    try:
        with path.open("rb", buffering=1 << 20) as file:
            row = 0
            while line := file.readline(MAX_ROW_BYTES + 1):
                row += 1
                if len(line) > MAX_ROW_BYTES:
                    raise DataError(f"{path} row {row}: longer than {MAX_ROW_BYTES:,} bytes; is this a TSV?")
                line = line.removeprefix(BOM) if row == 1 else line
                if line.strip():
                    yield _picture(line.strip(), f"{path} row {row}", split)
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from error


def _picture(line: bytes, where: str, split: str) -> Item:
    item_id, tab, encoded = line.partition(b"\t")
    if not tab or b"\t" in encoded:
        return BadItem(where, "it needs an item id, a tab and the picture in base64")
    key = item_id.decode("utf-8", "replace")
    return Picture(key, Base64Content(encoded), where, split=split)


def _queries(path: Path, split: str) -> Iterator[Item]:
    lines = TextLines(path)
    for line in lines.or_bad():
        yield line if isinstance(line, BadItem) else _query(line, lines.where, split)


def _query(line: str, where: str, split: str) -> Item:
    try:
        fields = json.loads(line)
    except (ValueError, RecursionError) as error:
        return BadItem(where, f"not JSON ({error})")
    match fields:
        case {"query_id": int(text_id), "query_text": str(text), "item_ids": list(items)} if text.strip():
            if all(type(item) is int for item in items):
                return Text(text, tuple(map(str, items)), where, text_id=text_id, split=split)
        case {"query_id": int(text_id), "query_text": str(text)} if text.strip() and "item_ids" not in fields:
            return Text(text, (), where, text_id=text_id, split=split)
    return BadItem(
        where, 'it needs "query_id", "query_text" and, but for hidden answers, "item_ids", a list of numbers'
    )
