"""The ids that an earlier import into the same folder gave, from its `{split}_names.jsonl`."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from cn_clip.data.captions import MAX_ID
from cn_clip.errors import DataError
from cn_clip.preprocess.importing.outputs import names_file, texts_file
from cn_clip.preprocess.importing.progress import ELSEWHERE, KNOWN, PictureRecord, Progress

_SHAPE = '{"image_id": 17, "name": "bags/7.png"}'


def read_earlier_names(folder: Path, splits: Sequence[str], progress: Progress) -> int:
    """Record the names of every split's map; the id that the first new picture gets. DataError names file and row.

    Maps of splits that are not written are read too: their pictures may come into one that is, and keep their ids.
    """
    highest = -1
    for split in splits:
        for image_id, name, where, _ in _rows_of(folder / names_file(split)):
            found = progress.find(name)
            if found is not None and found.image_id != image_id:
                raise DataError(
                    f"{where}: {name!r} has the id {image_id}, but was given {found.image_id} before; "
                    "mend the map, or delete it for new ids"
                )
            progress.record(name, PictureRecord(image_id, split, KNOWN, None))
            highest = max(highest, image_id)
    progress.require_distinct_ids(
        lambda image_id: (
            f"the maps of names in {folder} give two pictures the id {image_id}: mend them, or delete them for new ids"
        )
    )
    for path in _maps_of_others(folder, splits):
        split = path.name.removesuffix(names_file(""))
        for image_id, name, _, is_removed in _rows_of(path):
            # other pictures may have the same names there: what stands in the splits that are written counts
            if progress.find(name) is None:
                progress.record(name, PictureRecord(image_id, None if is_removed else split, ELSEWHERE, None))
            highest = max(highest, image_id)
    progress.forget_doubtful_ids()
    if highest == MAX_ID:
        raise DataError(
            f"the maps of names in {folder} have the id {MAX_ID}, after which there is none for a new picture: "
            "give it a lower one there, or delete the maps for new ids"
        )
    return highest + 1


def _maps_of_others(folder: Path, splits: Sequence[str]) -> list[Path]:
    """Maps of splits that are not written; a file of another kind may have such a name, but has no captions beside it."""
    ours = {names_file(split) for split in splits}
    return [
        path
        for path in sorted(folder.glob(names_file("*")))
        if path.name not in ours and (folder / texts_file(path.name.removesuffix(names_file("")))).is_file()
    ]


def _rows_of(path: Path) -> Iterator[tuple[int, str, str, bool]]:
    """(id, name, where it stands, whether it was taken out) of each row; none of a map that is not there."""
    if not path.is_file():
        return
    with path.open("rb") as file:
        for row, line in enumerate(file, start=1):
            where = f"{path} row {row}"
            try:
                fields = json.loads(line)
                image_id, name, is_removed = fields["image_id"], fields["name"], "removed" in fields
            except (ValueError, TypeError, KeyError) as error:
                raise DataError(
                    f"{where}: cannot be read ({error}); give {_SHAPE}, or delete the file for new ids"
                ) from error
            if type(image_id) is not int or abs(image_id) > MAX_ID or not isinstance(name, str):
                raise DataError(f"{where}: give {_SHAPE}, or delete the file for new ids")
            yield image_id, name, where, is_removed
