"""The pictures of a zero-shot set in batches, each with the number of its class.

Shapes: B pictures of a batch, S side in pixels.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from cn_clip.clip.transform import convert_to_rgb, image_transform, open_picture
from cn_clip.data.image_folder import ImageFolder, LabelledPicture
from cn_clip.errors import DataError

Batch = tuple[Tensor, Tensor]
"""Normalised pictures (B, 3, S, S) and int64 labels (B,)."""
Numbering = Literal["number", "order"]
"""What says which class a folder holds: the number that is its name, or its place in sorted order."""


@dataclass(frozen=True)
class RgbTransform:
    """The exact transform with the conversion to RGB before the resize: the reference reads folders so, but not stores."""

    image_px: int

    def __call__(self, raw: bytes) -> Tensor:
        picture: Tensor = image_transform(self.image_px)(convert_to_rgb(open_picture(raw)))
        return picture


class LabelledPictures:
    """Batches of (pictures, labels) in the order of folders and files; DataError for a picture that cannot be read."""

    def __init__(self, folder: ImageFolder, batch_size: int, num_workers: int, device: torch.device) -> None:
        self._loader: DataLoader[Batch | str] = DataLoader(
            _Readable(folder),  # type: ignore[arg-type]  # the collate function makes batches of its items
            batch_size=batch_size,
            num_workers=num_workers,
            collate_fn=_collate,
            pin_memory=device.type == "cuda",
        )

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator[Batch]:
        for batch in self._loader:
            if isinstance(batch, str):
                raise DataError(batch)
            yield batch


class _Readable(Dataset[tuple[Tensor, int] | str]):
    """Items, or the sentence that says why one cannot be read: an error would leave a worker as a whole traceback."""

    def __init__(self, folder: ImageFolder) -> None:
        self._folder = folder

    def __len__(self) -> int:
        return len(self._folder)

    def __getitem__(self, index: int) -> tuple[Tensor, int] | str:
        try:
            return self._folder[index]
        except DataError as error:
            return str(error)


def _collate(items: list[tuple[Tensor, int] | str]) -> Batch | str:
    pictures, labels = [], []
    for item in items:
        if isinstance(item, str):
            return item
        pictures.append(item[0])
        labels.append(item[1])
    return torch.stack(pictures), torch.tensor(labels)


def open_folder(root: str, image_px: int, num_classes: int, numbering: Numbering) -> ImageFolder:
    """The labelled pictures of `root`; with `order`, class k is the k-th folder in sorted order, as in the reference."""
    transform = RgbTransform(image_px)
    if numbering == "number":
        return ImageFolder(root, transform, num_classes)
    folder = ImageFolder(root, transform)
    names = sorted(entry.name for entry in os.scandir(root) if entry.is_dir())
    if len(names) > num_classes:
        raise DataError(f"{root} has {len(names)} class folders, but the label file only {num_classes} lines")
    folder.pictures = [
        LabelledPicture(picture.path, names.index(picture.path.relative_to(root).parts[0]))
        for picture in folder.pictures
    ]
    return folder
