"""Labelled pictures in folders, one folder per class, as the ELEVATER sets come: `test/007/x.jpg` is of class 7.

A folder's *number* is its class, so that a missing or empty folder does not shift the classes after it (and `10` does not
come before `2`). Folders with other names are numbered in sorted order.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor
from torch.utils.data import Dataset

from cn_clip.errors import DataError

EXTENSIONS = {".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}
"""Files taken for pictures, in any case; others are passed over."""


@dataclass(frozen=True, slots=True)
class LabelledPicture:
    """A picture file and the number of its class."""

    path: Path
    label: int


def list_pictures(root: str | os.PathLike[str], num_classes: int | None = None) -> list[LabelledPicture]:
    """Every picture below `root`'s class folders, sorted by folder name, then path. DataError when there is none.

    `num_classes` (lines of the label file) checks the numbers, and tells folders counted from 1 from those counted from 0.
    """
    folder = Path(root)
    if not folder.is_dir():
        raise DataError(f"{folder} is not a folder: give the one that holds a folder per class")
    classes = sorted(
        child.name for child in folder.iterdir() if child.is_dir() and not child.name.startswith(".")
    )
    if not classes:
        raise DataError(f"{folder} has no class folders: give the one that holds a folder per class")
    labels = _number_classes(folder, classes, num_classes)
    pictures = [
        LabelledPicture(path, label)
        for name, label in zip(classes, labels, strict=True)
        for path in _walk_pictures(folder / name)
    ]
    if not pictures:
        raise DataError(f"the class folders of {folder} hold no picture ({', '.join(sorted(EXTENSIONS))})")
    return pictures


def _number_classes(folder: Path, classes: Sequence[str], num_classes: int | None) -> list[int]:
    if not all(name.isdecimal() for name in classes):
        if num_classes not in (None, len(classes)):
            raise DataError(
                f"{folder} has {len(classes)} class folders, but the label file {num_classes} lines: "
                "name each folder by the number of its line, counted from 0"
            )
        return list(range(len(classes)))
    labels = [int(name) for name in classes]
    if len(set(labels)) != len(labels):
        raise DataError(
            f"two folders of {folder} have the same number: keep one way of writing it, such as 007"
        )
    if num_classes is None:
        return labels
    if sorted(labels) == list(range(1, num_classes + 1)):  # all are there, and the first is 1
        return [label - 1 for label in labels]
    if max(labels) >= num_classes:
        raise DataError(
            f"{folder} has a folder {max(labels)}, but the label file only {num_classes} lines (0 to {num_classes - 1})"
        )
    return labels


def _walk_pictures(folder: Path) -> Iterator[Path]:
    for parent, _, names in sorted(os.walk(folder, followlinks=True)):
        for name in sorted(names):
            if Path(name).suffix.lower() in EXTENSIONS:
                yield Path(parent, name)


class ImageFolder(Dataset[tuple[Tensor, int]]):
    """(transformed picture, label) of each file of `list_pictures`; `transform` takes the encoded picture."""

    def __init__(
        self,
        root: str | os.PathLike[str],
        transform: Callable[[bytes], Tensor],
        num_classes: int | None = None,
    ) -> None:
        self.pictures = list_pictures(root, num_classes)
        self.transform = transform

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        picture = self.pictures[index]
        try:
            return self.transform(picture.path.read_bytes()), picture.label
        except OSError as error:
            raise DataError(f"cannot read the picture {picture.path}: {error.strerror}") from error
        except DataError as error:
            raise DataError(f"{picture.path}: {error}") from error
