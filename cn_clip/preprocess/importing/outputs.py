"""Files of the splits while they grow, in a hidden folder, and their move to their places."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

from cn_clip.errors import DataError

WORK_FOLDER = ".importing"
PROGRESS_FILE = "progress.sqlite"
BAD_ROWS_FILE = "bad_rows.jsonl"
_BUFFER_BYTES = 1 << 20


def images_file(split: str) -> str:
    return f"{split}_imgs.tsv"


def texts_file(split: str) -> str:
    return f"{split}_texts.jsonl"


def names_file(split: str) -> str:
    return f"{split}_names.jsonl"


def json_line(row: object) -> bytes:
    # a file name that is not UTF-8 has lone surrogates in Python
    return json.dumps(row, ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n"


class Outputs:
    """The growing files of an import: `{split}_imgs.tsv`, `_texts.jsonl`, `_names.jsonl` of every split, and the bad rows."""

    def __init__(self, folder: Path, splits: Sequence[str]) -> None:
        self._folder = folder
        self._files: dict[str, BinaryIO] = {}
        self._sizes: dict[str, int] = {}
        names = [kind(split) for split in splits for kind in (images_file, texts_file, names_file)]
        self._names = [*names, BAD_ROWS_FILE]

    def open(self, sizes: dict[str, int]) -> None:
        """Take up the files at these sizes: what was written after them does not count."""
        for name in self._names:
            file = (self._folder / name).open("ab", buffering=_BUFFER_BYTES)
            self._files[name] = file
            size = sizes.get(name, 0)
            if file.tell() < size:
                raise DataError(
                    f"{self._folder / name} has lost {size - file.tell()} bytes: delete {self._folder} and run again"
                )
            file.truncate(size)
            file.seek(size)

    def close(self) -> None:
        for file in self._files.values():
            file.close()
        self._files.clear()

    def add_image(self, split: str, image_id: int, encoded: bytes) -> None:
        file = self._files[images_file(split)]
        file.write(b"%d\t" % image_id)
        file.write(encoded)
        file.write(b"\n")

    def add_text(self, split: str, text_id: int, text: str, image_ids: Sequence[int]) -> None:
        row = {"text_id": text_id, "text": text, "image_ids": list(image_ids)}
        self._files[texts_file(split)].write(json_line(row))

    def add_name(self, split: str, image_id: int, name: str, is_removed: bool = False) -> None:
        row: dict[str, object] = {"image_id": image_id, "name": name}
        if is_removed:
            row["removed"] = True
        self._files[names_file(split)].write(json_line(row))

    def add_bad_row(self, where: str, reason: str) -> None:
        self._files[BAD_ROWS_FILE].write(json_line({"where": where, "reason": reason}))

    def sync(self) -> dict[str, int]:
        """Bring everything to the disk; file name -> its size."""
        for name, file in self._files.items():
            file.flush()
            size = file.tell()
            if self._sizes.get(name) != size:
                os.fsync(file.fileno())
            self._sizes[name] = size
        return dict(self._sizes)


def put_in_place(work: Path, target: Path, names: Sequence[str]) -> None:
    """Move whole files to their final names; one that an interrupted call moved is passed over, an empty one is not kept."""
    for name in names:
        partial = work / name
        if not partial.exists():
            continue
        if partial.stat().st_size:
            os.replace(partial, target / name)
        else:
            # one of an earlier import would not fit what is there now
            (target / name).unlink(missing_ok=True)
            partial.unlink()


def make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"cannot make the folder --output-dir {folder}: {error.strerror}") from error
    if not os.access(folder, os.W_OK):
        raise DataError(f"the folder --output-dir {folder} is not writable: choose another")


def make_work_folder(output_dir: Path) -> Path:
    work = output_dir / WORK_FOLDER
    try:
        work.mkdir(exist_ok=True)
    except OSError as error:
        raise DataError(
            f"{work} cannot be made a folder ({error.strerror}), where an import keeps what is not whole yet: "
            "move away what stands there"
        ) from error
    return work


def has_rows(work: Path) -> bool:
    return any(child.stat().st_size for child in work.iterdir() if not child.name.startswith(PROGRESS_FILE))


def clear(work: Path) -> None:
    """Delete the working folder, the file of the progress last: until then a killed clearing is found again."""
    for child in work.iterdir():
        if not child.name.startswith(PROGRESS_FILE):
            child.unlink()
    shutil.rmtree(work)
