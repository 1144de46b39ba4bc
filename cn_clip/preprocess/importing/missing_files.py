"""What the name of a picture file that is not there could have meant: the mistakes that tables come with."""

from __future__ import annotations

import os
from itertools import islice
from pathlib import Path, PurePosixPath

_MAX_LISTED = 10_000
"""Names of one folder that are looked at: this is asked for every missing file."""


def hint_at(folder: Path, name: str) -> str:
    """The next step for a name that `folder` does not have, "" where nothing like it is there."""
    if "\\" in name:
        return "write / for \\ between folders"
    parts = PurePosixPath(name).parts
    whole = folder.absolute()
    for number in range(1, len(parts)):
        if whole.parts[-number:] == parts[:number] and folder.joinpath(*parts[number:]).is_file():
            given = "/".join(parts[:number])
            return f"names begin below --image-dir: give {whole.parents[number - 1]} there, or leave out '{given}/'"
    similar = _similar(folder, parts)
    return f"there is {similar}" if similar else ""


def _similar(folder: Path, parts: tuple[str, ...]) -> str:
    """A file whose name differs in case or ending only."""
    found = PurePosixPath()
    for number, part in enumerate(parts):
        is_file = number == len(parts) - 1
        if not is_file and (folder / found / part).is_dir():
            found /= part
            continue
        other = _other_name(folder / found, part, is_file=is_file)
        if other is None:
            return ""
        found /= other
    return str(found)


def _other_name(folder: Path, name: str, *, is_file: bool) -> str | None:
    try:
        with os.scandir(folder) as entries:
            names = sorted(entry.name for entry in islice(entries, _MAX_LISTED) if entry.is_file() == is_file)
    except OSError:
        return None  # a hint only: what is wrong is said already
    folded, stem = name.casefold(), PurePosixPath(name).stem.casefold()
    rules = [lambda other: other.casefold() == folded]
    if is_file:
        # a.b may be a name without its ending, or one with another
        rules += [
            lambda other: PurePosixPath(other).stem.casefold() == folded,
            lambda other: PurePosixPath(other).stem.casefold() == stem,
        ]
    return next((other for rule in rules for other in names if rule(other)), None)
