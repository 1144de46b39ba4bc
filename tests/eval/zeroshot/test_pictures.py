from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

from cn_clip.errors import DataError
from cn_clip.eval.zeroshot.pictures import LabelledPictures, open_folder

CPU = torch.device("cpu")


def make_folder(root: Path, classes: list[str]) -> str:
    for level, name in enumerate(classes):
        (root / name).mkdir(parents=True)
        Image.new("RGB", (9, 7), (level, 0, 0)).save(root / name / "x.png")
    return str(root)


def test_batches_in_order_of_folders_and_files(tmp_path: Path) -> None:
    folder = open_folder(make_folder(tmp_path, ["000", "001", "003"]), 8, 4, "number")
    batches = list(LabelledPictures(folder, 2, 0, CPU))
    assert [tuple(images.shape) for images, _ in batches] == [(2, 3, 8, 8), (1, 3, 8, 8)]
    assert torch.cat([labels for _, labels in batches]).tolist() == [0, 1, 3]  # no shift for the missing 002


def test_numbers_and_order_of_folders(tmp_path: Path) -> None:
    root = make_folder(tmp_path, ["0", "10", "2"])
    by_number = [picture.label for picture in open_folder(root, 8, 11, "number").pictures]
    by_order = [picture.label for picture in open_folder(root, 8, 11, "order").pictures]
    assert by_number == [0, 10, 2]
    assert by_order == [0, 1, 2]
    with pytest.raises(DataError, match="3 class folders, but the label file only 2"):
        open_folder(root, 8, 2, "order")


def test_pictures_are_rgb_before_the_resize(tmp_path: Path) -> None:
    (tmp_path / "0").mkdir()
    stripes = Image.new("P", (8, 8), 0)
    stripes.putpalette([0, 0, 0, 255, 255, 255])
    stripes.paste(1, (0, 0, 4, 8))
    stripes.save(tmp_path / "0" / "x.png")
    image, _ = open_folder(str(tmp_path), 3, 1, "number")[0]
    assert len(image[0].unique()) > 2  # resized as a palette it would hold black and white alone


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_damaged_picture_is_one_sentence(num_workers: int, tmp_path: Path) -> None:
    root = make_folder(tmp_path, ["0", "1"])
    damaged = tmp_path / "1" / "x.png"
    damaged.write_bytes(damaged.read_bytes()[:20])
    with pytest.raises(DataError) as error:
        list(LabelledPictures(open_folder(root, 8, 2, "number"), 1, num_workers, CPU))
    assert str(error.value).startswith(str(damaged)) and "\n" not in str(error.value)
