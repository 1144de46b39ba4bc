"""A folder of pictures, with each way of giving its captions."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from cn_clip.errors import CnClipError, ConfigError, DataError

RunImport = Callable[..., object]
ROWS = [("2.jpg", "图二, 第一句"), ("0.jpg", "图零"), ("鞋/红/4.webp", '"高跟鞋"'), ("2.jpg", "图二")]


def write_csv(
    path: Path, rows: list[tuple[str, str]] = ROWS, encoding: str = "utf-8", delimiter: str = ","
) -> Path:
    def cell(value: str) -> str:
        return '"' + value.replace('"', '""') + '"' if delimiter == "," else value

    lines = [f"image{delimiter}caption", *(f"{name}{delimiter}{cell(text)}" for name, text in rows)]
    path.write_bytes("".join(f"{line}\r\n" for line in lines).encode(encoding))
    return path


def expected(pictures: Path, rows: list[tuple[str, str]] = ROWS) -> dict[str, tuple[bytes, list[str]]]:
    names = dict.fromkeys(name for name, _ in rows)
    return {
        name: ((pictures / name).read_bytes(), [text for other, text in rows if other == name])
        for name in names
    }


def test_a_csv(pictures: Path, tmp_path: Path, run_import: RunImport) -> None:
    table = write_csv(tmp_path / "captions.csv", encoding="utf-8-sig")
    out = run_import("folder", "--image-dir", pictures, "--captions", table)
    assert out.by_name() == expected(pictures)
    assert out.names() == {"2.jpg": 0, "0.jpg": 1, "鞋/红/4.webp": 2}  # counted as they come
    assert out.texts() == [(0, "图二, 第一句", [0]), (1, "图零", [1]), (2, '"高跟鞋"', [2]), (3, "图二", [0])]
    assert sorted(out.content()) == ["train_imgs.tsv", "train_names.jsonl", "train_texts.jsonl"]
    assert [path.name for path in out.folder.iterdir() if path.name.startswith(".")] == []
    out.check_store("train")


@pytest.mark.parametrize(
    ("name", "encoding", "delimiter", "words"),
    [
        ("c.csv", "gb18030", ",", ("--encoding", "gb18030")),
        ("c.csv", "utf-16", ",", ("--encoding", "utf-16")),
        ("c.csv", "utf-8", ";", ("--quotes", "none")),
        ("c.tsv", "utf-8", "\t", ()),
        ("c.txt", "utf-8", "|", ("--delimiter", "pipe", "--quotes", "none")),
    ],
)
def test_encodings_and_delimiters(
    pictures: Path,
    tmp_path: Path,
    run_import: RunImport,
    name: str,
    encoding: str,
    delimiter: str,
    words: tuple,
) -> None:
    table = write_csv(tmp_path / name, encoding=encoding, delimiter=delimiter)
    out = run_import("folder", "--image-dir", pictures, "--captions", table, *words)
    assert out.by_name() == expected(pictures)


def test_a_table_without_header(pictures: Path, tmp_path: Path, run_import: RunImport) -> None:
    (tmp_path / "c.tsv").write_text("7\t图\t0.jpg\n8\t图一\t1.png\n", encoding="utf-8")
    words = ("--no-header", "--image-column", "3", "--caption-column", "2")
    out = run_import("folder", "--image-dir", pictures, "--captions", tmp_path / "c.tsv", *words)
    assert out.by_name() == expected(pictures, [("0.jpg", "图"), ("1.png", "图一")])


def test_jsonl_of_lists(pictures: Path, tmp_path: Path, run_import: RunImport) -> None:
    rows = [{"file_name": "0.jpg", "text": ["图", "零"]}, {"file_name": ["1.png", "./5.jpg"], "text": "两张"}]
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n\n" for row in rows)
    (tmp_path / "c.jsonl").write_text(lines, encoding="utf-8")
    out = run_import("folder", "--image-dir", pictures, "--captions", tmp_path / "c.jsonl")
    rows = [("0.jpg", "图"), ("0.jpg", "零"), ("1.png", "两张"), ("5.jpg", "两张")]
    assert out.by_name() == expected(pictures, rows)


def test_a_json_array(pictures: Path, tmp_path: Path, run_import: RunImport) -> None:
    rows = [{"image": name, "caption": [text]} for name, text in ROWS]
    (tmp_path / "c.json").write_text(f" \n{json.dumps(rows, indent=2)}", encoding="utf-8")
    words = ("folder", "--image-dir", pictures, "--captions", tmp_path / "c.json")
    assert run_import(*words).by_name() == expected(pictures)
    (tmp_path / "c.json").write_text('[{"image": "0.jpg", "caption": "a"}, {"image": 3, "caption": "a"}]')
    with pytest.raises(DataError, match=r"c\.json, object 2, field image: it holds no text"):
        run_import(*words)


def test_a_line_separator_inside_a_caption(pictures: Path, tmp_path: Path, run_import: RunImport) -> None:
    text = "甲\u2028乙\x0b丙"
    for encoding in ("utf-8", "utf-16"):
        table = write_csv(tmp_path / "c.csv", [("0.jpg", text)], encoding=encoding)
        out = run_import("folder", "--image-dir", pictures, "--captions", table, "--encoding", encoding)
        assert out.by_name() == expected(pictures, [("0.jpg", text)])


def test_text_files_beside_the_pictures(pictures: Path, run_import: RunImport) -> None:
    for path in [*pictures.rglob("*.jpg"), *pictures.rglob("*.png"), *pictures.rglob("*.webp")]:
        path.with_suffix(".txt").write_text(f"{path.stem}\n\n 又 {path.stem} \n", encoding="utf-8")
    (pictures / "._0.jpg").write_bytes(b"a resource fork of macOS")
    (pictures / "notes.doc").write_bytes(b"not a picture")
    out = run_import("folder", "--image-dir", pictures)
    names = ["0.jpg", "1.png", "2.jpg", "5.jpg", "鞋/3.jpg", "鞋/红/4.webp"]
    rows = [(name, text) for name in names for text in (Path(name).stem, f"又 {Path(name).stem}")]
    assert out.by_name() == expected(pictures, rows)
    assert list(out.names()) == names  # by name: the same on every file system


def test_names_of_folders(pictures: Path, run_import: RunImport) -> None:
    words = (
        "--captions-from",
        "folder",
        "--caption-template",
        "一张{}的照片",
        "--bad-rows",
        "skip",
        "--max-bad-share",
        "1",
    )
    out = run_import("folder", "--image-dir", pictures, *words)
    assert out.by_name() == expected(
        pictures, [("鞋/3.jpg", "一张鞋的照片"), ("鞋/红/4.webp", "一张红的照片")]
    )
    assert len(out.bad_rows()) == 4  # those that lie in no folder


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("", "c.csv is empty"),
        (
            "bild,caption\n0.jpg,a\n",
            "no column has a usual name; set --image-column to one of: bild, caption",
        ),
        (
            "image,path,caption\n0.jpg,b,a\n",
            r"several columns could be meant \(image, path\); set --image-column",
        ),
        ("image,words\n0.jpg,a\n", "set --caption-column to one of: image, words"),
        ("image,caption\n0.jpg,a\n1.png,\n", r"row 3, column caption: it is empty"),
        ("image,caption\n0.jpg,a\n1.png,b,c\n", r"row 3: it has 3 cells, not 2"),
        ('image,caption\n0.jpg,a\n1.png,"b\n2.jpg,c\n', "row 3: not CSV"),
        ('image,caption\n0.jpg,a\n1.png,"b"c\n', "row 3: not CSV"),
        ("image,caption\n0.jpg,a\nnone.jpg,b\n", r"row 3: cannot read .*none\.jpg: No such file"),
        ("image,caption\n0.jpg,a\nbad.jpg,b\n", "row 3: not a picture of a known format"),
        ("image,caption\n0.jpg,a\ncut.png,b\n", "row 3: the picture is cut"),
    ],
)
def test_a_bad_table_is_one_sentence_and_writes_nothing(
    pictures: Path,
    tmp_path: Path,
    run_import: RunImport,
    encode_picture: Callable[..., bytes],
    table: str,
    message: str,
) -> None:
    (pictures / "bad.jpg").write_bytes(b"no picture")
    (pictures / "cut.png").write_bytes(encode_picture(3, "PNG")[:60])
    (tmp_path / "c.csv").write_text(table, encoding="utf-8")
    with pytest.raises(DataError, match=message) as caught:
        run_import("folder", "--image-dir", pictures, "--captions", tmp_path / "c.csv")
    assert "\n" not in str(caught.value)
    assert [path.name for path in (tmp_path / "out").iterdir() if not path.name.startswith(".")] == []


def test_bad_rows_are_passed_over_and_listed(pictures: Path, tmp_path: Path, run_import: RunImport) -> None:
    (pictures / "bad.jpg").write_bytes(b"no picture")
    table = "image,caption\n0.jpg,a\nbad.jpg,b\nbad.jpg,b2\n1.png,\n2.jpg,c,d\nnone.jpg,e\n5.jpg,f\n"
    (tmp_path / "c.csv").write_bytes(table.encode() + "3.jpg,红".encode("gbk") + b"\n" + b"1.png,g\n")
    words = ("--bad-rows", "skip", "--max-bad-share", "0.9")
    out = run_import("folder", "--image-dir", pictures, "--captions", tmp_path / "c.csv", *words)
    assert out.by_name() == expected(pictures, [("0.jpg", "a"), ("5.jpg", "f"), ("1.png", "g")])
    reasons = [(row["where"].rpartition(" row ")[2], row["reason"]) for row in out.bad_rows()]
    assert [where for where, _ in reasons] == ["3", "5, column caption", "6", "7", "9"]
    assert "GB18030 it reads '3.jpg,红'" in reasons[-1][1]
    out.check_store("train")


def test_too_many_bad_rows(pictures: Path, tmp_path: Path, run_import: RunImport) -> None:
    table = "image,caption\n0.jpg,a\n" + "".join(f"wrong/{n}.jpg,b\n" for n in range(5))
    (tmp_path / "c.csv").write_text(table)
    words = ("--bad-rows", "skip")
    with pytest.raises(
        DataError, match=r"5 of 12 pictures and captions are bad, which is more than --max-bad-share 0\.01"
    ):
        run_import("folder", "--image-dir", pictures, "--captions", tmp_path / "c.csv", *words)


@pytest.mark.parametrize(
    ("words", "kind", "message"),
    [
        (("--image-dir", "nowhere"), DataError, "--image-dir nowhere is not a folder"),
        (("--captions", "nowhere.csv"), DataError, "there is no file nowhere.csv"),
        (("--valid-share", "1"), ConfigError, "--valid-share is 1.0"),
        (("--split", "../a"), ConfigError, "--split: '../a' cannot name a split"),
        (("--valid-share", "0.5", "--valid-split", "train"), ConfigError, "named twice"),
        (("--max-px", "0"), ConfigError, "--max-px is 0"),
        (("--workers", "-1"), ConfigError, "--workers is -1"),
        (("--max-bad-share", "2"), ConfigError, "--max-bad-share is 2"),
        (("--captions-from", "folder", "--caption-template", "a"), ConfigError, "--caption-template is 'a'"),
        (("--captions", __file__, "--no-header"), ConfigError, "--no-header needs --image-column"),
    ],
)
def test_bad_flags(
    pictures: Path, tmp_path: Path, run_import: RunImport, words: tuple, kind: type[CnClipError], message: str
) -> None:
    with pytest.raises(kind, match=message):
        run_import("folder", "--image-dir", pictures, *words)


def test_no_caption_at_all(pictures: Path, tmp_path: Path, run_import: RunImport) -> None:
    with pytest.raises(DataError, match=r"0\.jpg: there is no 0\.txt with its captions beside it"):
        run_import("folder", "--image-dir", pictures)
    assert list((tmp_path / "out").iterdir()) == []  # nothing to go on with
