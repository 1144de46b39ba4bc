"""Tables as people write them: names of columns, paths from another system, encodings, flags with underscores."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cn_clip.errors import ConfigError, DataError

RunImport = Callable[..., Any]


@pytest.fixture
def import_table(pictures: Path, tmp_path: Path, run_import: RunImport) -> Callable[..., Any]:
    """Imports a table of this content."""

    def run(content: str | bytes, *words: object, name: str = "c.csv") -> Any:
        data = content if isinstance(content, bytes) else content.encode()
        (tmp_path / name).write_bytes(data)
        return run_import("folder", "--image-dir", pictures, "--captions", tmp_path / name, *words)

    return run


@pytest.mark.parametrize(
    "header",
    [
        "Image,Caption",
        "IMAGE_PATH,Text",
        "图片,标题",
        "图像,文本",
        "文件名,描述",
        "图片路径,文字",
        "FileName,TITLE",
        "img,Description",
        "picture,说明",
    ],
)
def test_usual_names_of_columns(import_table: Callable[..., Any], header: str) -> None:
    names = header.split(",")
    assert import_table(f"{header}\n0.jpg,红\n").texts() == [(0, "红", [0])]
    row = json.dumps(dict(zip(names, ("0.jpg", "红"), strict=True)))
    assert import_table(row, name="c.jsonl").texts() == [(0, "红", [0])]


def test_a_column_that_is_named_in_other_case(import_table: Callable[..., Any]) -> None:
    words = ("--image-column", "bild", "--caption-column", "WORT")
    assert import_table("Bild,Wort,wort \n0.jpg,a,b\n", "--image-column", "bild", "--caption-column", "Wort")
    assert import_table("BILD,Wort\n0.jpg,a\n", *words).texts() == [(0, "a", [0])]
    with pytest.raises(DataError, match="several columns could be meant"):
        import_table("Bild,wort,Wort\n0.jpg,a,b\n", *words)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (
            "bild,wort\n0.jpg,a\n",
            "row 1: no column has a usual name; set --image-column and --caption-column, each to one of: bild, wort",
        ),
        (
            "bild,text,title\n0.jpg,a,b\n",
            r"no column has a usual name, several columns could be meant \(text, title\); set --image-column and",
        ),
        (
            "0.jpg,红\n1.png,白\n",
            "row 1: it looks like a row, not like names of columns; give --no-header --image-column 1 --caption-column 2",
        ),
        ("红,1,鞋/3.JPG\n", "give --no-header --image-column 3 --caption-column N"),
        ("image,caption,image\n0.jpg,a,b\n", "2 columns are named 'image'"),
    ],
)
def test_columns_that_are_not_found(import_table: Callable[..., Any], table: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        import_table(table)


def test_objects_without_usual_names(import_table: Callable[..., Any]) -> None:
    with pytest.raises(
        DataError, match=r"row 1: no field has a usual name; set --image-column and --caption-"
    ):
        import_table('{"bild": "0.jpg", "wort": "a"}\n', name="c.jsonl")


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("鞋\\3.jpg", r"write / for \\ between folders"),
        ("images/0.jpg", "names begin below --image-dir: give .*, or leave out 'images/'"),
        ("images\\0.jpg", r"write / for \\"),
        ("0.JPG", "there is 0.jpg"),
        ("鞋/3.Jpg", "there is 鞋/3.jpg"),
        ("鞋/3", "there is 鞋/3.jpg"),
        ("1", "there is 1.png"),
        ("2.png", "there is 2.jpg"),
    ],
)
def test_what_a_missing_picture_could_be(import_table: Callable[..., Any], name: str, hint: str) -> None:
    with pytest.raises(DataError, match=f"row 3: cannot read .*: No such file or directory; {hint}"):
        import_table(f"image,caption\n0.jpg,a\n{name},b\n")


def test_names_that_begin_with_folders_above(import_table: Callable[..., Any], pictures: Path) -> None:
    name = f"{pictures.parent.name}/images/鞋/3.jpg"
    hint = f"give {pictures.parents[1]} there, or leave out '{pictures.parent.name}/images/'"
    with pytest.raises(DataError) as caught:
        import_table(f"image,caption\n{name},b\n")
    assert hint in str(caught.value)


def test_a_missing_picture_without_a_hint(import_table: Callable[..., Any]) -> None:
    with pytest.raises(DataError, match=r"none\.jpg: No such file or directory; mend it"):
        import_table("image,caption\n0.jpg,a\nnone.jpg,b\n")


@pytest.mark.parametrize("indent", [None, 1])
def test_a_json_that_is_a_map(import_table: Callable[..., Any], indent: int | None) -> None:
    table = json.dumps({"0.jpg": "红", "1.png": "白"}, ensure_ascii=False, indent=indent)
    with pytest.raises(DataError, match=r'c\.json is no array of objects; give \[{"image": "a\.jpg", "capt'):
        import_table(table, name="c.json")


def test_lines_of_objects_may_be_called_json(import_table: Callable[..., Any]) -> None:
    rows = '{"image": "0.jpg", "caption": "a"}\n{"image": "1.png", "caption": "b"}\n'
    assert [text for _, text, _ in import_table(rows, name="c.json").texts()] == ["a", "b"]


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
def test_utf16_is_told_by_its_mark(import_table: Callable[..., Any], encoding: str) -> None:
    table = "\ufeffimage,caption\n0.jpg,红\n".encode(encoding)
    with pytest.raises(DataError, match="it is UTF-16: .* --encoding utf-16"):
        import_table(table)
    assert import_table(table, "--encoding", "utf-16").texts() == [(0, "红", [0])]


@pytest.mark.parametrize("encoding", ["gbk", "gb2312"])
def test_names_of_the_chinese_encodings(import_table: Callable[..., Any], encoding: str) -> None:
    out = import_table("image,caption\n0.jpg,红色\n".encode(encoding), "--encoding", encoding)
    assert out.texts() == [(0, "红色", [0])]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--captions-from", "folder"), "--captions and --captions-from folder"),
        (("--caption-template", "一张{}"), "--caption-template is for --captions-from folder"),
        (
            ("--image-column", "a", "--caption-column", "a"),
            "--image-column and --caption-column are both 'a'",
        ),
    ],
)
def test_flags_that_do_not_go_together(
    import_table: Callable[..., Any], words: tuple[str, ...], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        import_table("image,caption,a\n0.jpg,a,b\n", *words)


def test_a_template_for_captions_from_files(pictures: Path, run_import: RunImport) -> None:
    with pytest.raises(ConfigError, match="--caption-template is for --captions-from folder"):
        run_import("folder", "--image-dir", pictures, "--caption-template", "一张{}")


def test_flags_with_underscores(pictures: Path, tmp_path: Path, run_import: RunImport) -> None:
    (tmp_path / "c_d.csv").write_text("0.jpg,a_b\n")
    out = run_import(
        *("folder", "--image_dir", pictures, f"--captions={tmp_path / 'c_d.csv'}", "--no_header"),
        *("--image_column=1", "--caption_column", "2", "--max_bad_share", "0.5"),
    )
    assert out.texts() == [(0, "a_b", [0])]
