"""The ids that an earlier import into the same folder gave, from its `{split}_names.jsonl`."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from cn_clip.data.captions import MAX_ID
from cn_clip.errors import DataError
from cn_clip.preprocess.importing.outputs import names_file
from cn_clip.preprocess.importing.progress import KNOWN, PictureRecord, Progress

_SHAPE = '{"image_id": 17, "name": "bags/7.png"}'


def read_earlier_names(folder: Path, splits: Sequence[str], progress: Progress) -> int:
    """Record the names of every split's map; the id that the first new picture gets. DataError names file and row."""
    next_id = 0
    for split in splits:
        path = folder / names_file(split)
        if not path.is_file():
            continue
        for image_id, name, where in _rows_of(path):
            found = progress.find(name)
            if found is not None and found.image_id != image_id:
                raise DataError(
                    f"{where}: {name!r} has the id {image_id}, but was given {found.image_id} before; "
                    "mend the map, or delete it for new ids"
                )
            progress.record(name, PictureRecord(image_id, split, KNOWN, None))
            next_id = max(next_id, image_id + 1)
    progress.require_distinct_ids(
        lambda image_id: (
            f"the maps of names in {folder} give two pictures the id {image_id}: mend them, or delete them for new ids"
        )
    )
    return next_id


def _rows_of(path: Path) -> Iterator[tuple[int, str, str]]:
    """(id, name, where it stands) of each row."""
    with path.open("rb") as file:
        for row, line in enumerate(file, start=1):
            where = f"{path} row {row}"
            try:
                fields = json.loads(line)
                image_id, name = fields["image_id"], fields["name"]
            except (ValueError, TypeError, KeyError) as error:
                raise DataError(
                    f"{where}: cannot be read ({error}); give {_SHAPE}, or delete the file for new ids"
                ) from error
            if type(image_id) is not int or abs(image_id) > MAX_ID or not isinstance(name, str):
                raise DataError(f"{where}: give {_SHAPE}, or delete the file for new ids")
            yield image_id, name, where
