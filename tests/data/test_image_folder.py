"""Class folders: a folder's number is its class."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from cn_clip.data.image_folder import ImageFolder, list_pictures
from cn_clip.errors import DataError


def make(root: Path, files: list[str]) -> Path:
    for name in files:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(name.encode())
    return root


def labels(root: Path, num_classes: int | None = None) -> dict[str, int]:
    pictures = list_pictures(root, num_classes)
    return {str(picture.path.relative_to(root)): picture.label for picture in pictures}


def test_numbers_are_classes_even_with_gaps(tmp_path: Path) -> None:
    root = make(tmp_path, ["2/b.PNG", "10/a.jpg", "0/x/deep.webp", "0/notes.txt", ".cache/c.png"])
    (root / "1").mkdir()
    expected = {"0/x/deep.webp": 0, "10/a.jpg": 10, "2/b.PNG": 2}
    assert labels(root) == labels(root, 11) == expected
    assert list(labels(root)) == list(expected)  # rows in the order of names, as the reference writes them


def test_folders_counted_from_one(tmp_path: Path) -> None:
    root = make(tmp_path, ["1/a.png", "2/b.png", "3/c.png"])
    assert labels(root, 3) == {"1/a.png": 0, "2/b.png": 1, "3/c.png": 2}
    assert labels(root, 4) == {"1/a.png": 1, "2/b.png": 2, "3/c.png": 3}  # class 0 is missing


def test_names_are_numbered_in_order(tmp_path: Path) -> None:
    root = make(tmp_path, ["dog/a.png", "cat/b.png", "1/c.png"])
    assert labels(root, 3) == {"1/c.png": 0, "cat/b.png": 1, "dog/a.png": 2}


@pytest.mark.parametrize(
    ("files", "num_classes", "message"),
    [
        (["0/a.png", "3/a.png"], 3, r"a folder 3, but the label file only 3 lines"),
        (["cat/a.png"], 2, "1 class folders, but the label file 2 lines"),
        (["1/a.png", "01/a.png"], None, "the same number"),
        (["0/a.txt"], None, "hold no picture"),
        (["a.png"], None, "no class folders"),
    ],
)
def test_folders_that_do_not_fit(
    tmp_path: Path, files: list[str], num_classes: int | None, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        list_pictures(make(tmp_path, files), num_classes)


def test_a_bad_picture_is_named(tmp_path: Path) -> None:
    def transform(raw: bytes) -> Tensor:
        if raw.endswith(b"bad.png"):
            raise DataError("not a picture")
        return torch.tensor(list(raw))

    folder = ImageFolder(make(tmp_path, ["0/a.png", "1/bad.png"]), transform)
    assert len(folder) == 2
    assert folder[0][1] == 0 and bytes(folder[0][0].tolist()) == b"0/a.png"
    with pytest.raises(DataError, match=r"1/bad\.png: not a picture"):
        folder[1]
