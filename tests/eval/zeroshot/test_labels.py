from __future__ import annotations

from pathlib import Path

import pytest

from cn_clip.errors import DataError
from cn_clip.eval.zeroshot.labels import read_class_names, read_index


def test_names_by_line(tmp_path: Path) -> None:
    path = tmp_path / "label_cn.txt"
    path.write_text("\ufeff 金毛犬 \r\n波斯猫\n\n", encoding="utf-8")
    assert read_class_names(path) == ["金毛犬", "波斯猫"]


@pytest.mark.parametrize(
    ("content", "message"), [("", "is empty"), ("\n\n", "is empty"), ("猫\n\n狗\n", "row 2 is blank")]
)
def test_bad_label_files(content: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "label_cn.txt"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(DataError, match=message):
        read_class_names(path)


def test_label_file_in_another_encoding(tmp_path: Path) -> None:
    path = tmp_path / "label_cn.txt"
    path.write_bytes("金毛犬".encode("gbk"))
    with pytest.raises(DataError, match="UTF-8"):
        read_class_names(path)
    with pytest.raises(DataError, match="cannot read the label file"):
        read_class_names(tmp_path / "none.txt")


def test_index(tmp_path: Path) -> None:
    path = tmp_path / "index.json"
    path.write_text("[2, 0, 1]")
    assert read_index(path, 3) == [2, 0, 1]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[0, 3]", "3 at place 1"),
        ("[-1]", "-1 at place 0"),
        ("[true]", "True at"),
        ("[]", "not a list"),
        ("{", "not JSON"),
    ],
)
def test_bad_index(content: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "index.json"
    path.write_text(content)
    with pytest.raises(DataError, match=message):
        read_index(path, 3)
