"""What no import takes: files outside of the folder, what is no file, ids past 64 bits, names and captions that are no text."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cn_clip.errors import DataError
from cn_clip.preprocess.importing.items import FileContent, name_below

RunImport = Callable[..., Any]
Encode = Callable[..., bytes]
SKIP = ("--bad-rows", "skip", "--max-bad-share", "1")
HUGE = "9" * 5000


@pytest.mark.parametrize(
    ("name", "below"),
    [
        ("a.jpg", "a.jpg"),
        ("./a//b/../c.jpg", "a/c.jpg"),
        ("..a.jpg", "..a.jpg"),
        ("{folder}/a/b.jpg", "a/b.jpg"),
        ("../images/a.jpg", "a.jpg"),
        ("../secret.jpg", None),
        ("a/../../secret.jpg", None),
        ("..", None),
        ("{folder}/../secret.jpg", None),
        ("{folder}s/secret.jpg", None),
        ("/etc/passwd", None),
        ("a\0.jpg", None),
    ],
)
@pytest.mark.parametrize("is_relative", [False, True])
def test_names_below_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, below: str | None, is_relative: bool
) -> None:
    monkeypatch.chdir(tmp_path)
    name = name.replace("{folder}", str(tmp_path / "images"))
    folder = Path("images") if is_relative else tmp_path / "images"
    if below is None:
        with pytest.raises(DataError, match="lies outside of|is no name of a file"):
            name_below(folder, name)
    else:
        assert name_below(folder, name) == below


def add_row(kind: str, folder: Path, picture: str) -> tuple[object, ...]:
    """Words of an import of the picture 0.jpg and of one more, for each kind of data that names files."""
    names, words = ["0.jpg", picture], ("--image-dir", folder)
    path = folder.parent / "c.data"
    if kind == "coco":
        images = [{"id": number, "file_name": name} for number, name in enumerate(names)]
        annotations = [{"id": 7 + number, "image_id": number, "caption": "字"} for number in range(2)]
        path.write_text(json.dumps({"images": images, "annotations": annotations}))
        return ("coco", *words, "--captions", path)
    if kind == "parquet":
        pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
        parquet.write_table(pyarrow.table({"image": names, "caption": ["字", "字"]}), path)
        return ("parquet", *words, "--files", path)
    if kind == "jsonl":
        path = path.with_suffix(".jsonl")
        path.write_text("".join(json.dumps({"image": name, "caption": "字"}) + "\n" for name in names))
        return ("folder", *words, "--captions", path)
    path.write_text("image,caption\n" + "".join(f"{name},字\n" for name in names))
    return ("folder", *words, "--captions", path)


@pytest.mark.parametrize("kind", ["csv", "jsonl", "coco", "parquet"])
@pytest.mark.parametrize("name", ["../secret.jpg", "{outside}", "a/../../secret.jpg"])
def test_pictures_outside_of_the_folder(
    pictures: Path, run_import: RunImport, encode_picture: Encode, kind: str, name: str
) -> None:
    secret = pictures.parent / "secret.jpg"
    secret.write_bytes(encode_picture(200))
    words = add_row(kind, pictures, name.replace("{outside}", str(secret)))
    with pytest.raises(DataError, match=r"secret\.jpg' lies outside of .*images: name files inside of it"):
        run_import(*words)
    out = run_import(*words, *SKIP)
    assert list(out.images().values()) == [(pictures / "0.jpg").read_bytes()]
    assert secret.read_bytes() not in out.images().values()


def test_whole_paths_inside_of_the_folder_are_the_same_pictures(
    pictures: Path, tmp_path: Path, run_import: RunImport
) -> None:
    (tmp_path / "c.csv").write_text(f"image,caption\n2.jpg,a\n{pictures / '2.jpg'},b\n./2.jpg,c\n")
    out = run_import("folder", "--image-dir", pictures, "--captions", tmp_path / "c.csv")
    assert out.by_name() == {"2.jpg": ((pictures / "2.jpg").read_bytes(), ["a", "b", "c"])}


def test_names_of_published_sets_that_leave_their_folder(
    tmp_path: Path, run_import: RunImport, encode_picture: Encode
) -> None:
    coco, flickr = tmp_path / "coco-cn", tmp_path / "flickr"
    name = "flickr30kzhbbosontrain"
    for path, text in (
        (coco / "coco-cn_train.txt", "../../COCO_train2014_000000000101\n"),
        (coco / "imageid.human-written-caption.txt", "COCO_train2014_000000000101#0\t字\n"),
        (flickr / name / "ImageSets" / f"{name}.txt", "../101\n"),
        (flickr / name / "TextData" / f"seg.{name}.caption.txt", "101#zhb#0 字\n"),
    ):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (tmp_path / "images").mkdir()
    words = ("--image-dir", tmp_path / "images")
    with pytest.raises(DataError, match="000101' is no name of a file"):
        run_import("coco-cn", "--data-dir", coco, *words)
    with pytest.raises(DataError, match=r"'\.\./101' is no number of a picture"):
        run_import("flickr30k-cn", "--data-dir", flickr, *words)


@pytest.mark.skipif(sys.platform == "win32", reason="no pipes with names there")
def test_a_pipe_is_not_waited_for(pictures: Path, run_import: RunImport) -> None:
    os.mkfifo(pictures / "pipe.jpg")
    with pytest.raises(DataError, match=r"row 3: cannot read .*pipe\.jpg: it is no file"):
        run_import(*add_row("csv", pictures, "pipe.jpg"), "--workers", "0")


def test_a_device_has_no_end(pictures: Path, run_import: RunImport) -> None:
    (pictures / "endless.jpg").symlink_to("/dev/zero")
    with pytest.raises(DataError, match=r"endless\.jpg: it is no file"):
        run_import(*add_row("csv", pictures, "endless.jpg"), "--workers", "0")


def test_a_picture_larger_than_any(tmp_path: Path) -> None:
    with (tmp_path / "a.jpg").open("wb") as file:
        file.truncate(512 << 20)  # takes no room on the disk
    with pytest.raises(DataError, match=r"a\.jpg: it has more than .* bytes"):
        FileContent(tmp_path / "a.jpg").read()


def test_links_between_folders_that_go_round(pictures: Path, run_import: RunImport) -> None:
    (pictures / "鞋" / "again").symlink_to(pictures, target_is_directory=True)
    (pictures / "鞋" / "self").symlink_to(".", target_is_directory=True)
    (pictures / "too").symlink_to(
        pictures / "鞋" / "红", target_is_directory=True
    )  # no loop: read under both names
    out = run_import("folder", "--image-dir", pictures, "--captions-from", "folder", *SKIP)
    assert sorted(out.names()) == ["too/4.webp", "鞋/3.jpg", "鞋/红/4.webp"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_folder_that_may_not_be_read(pictures: Path, run_import: RunImport) -> None:
    (pictures / "鞋").chmod(0)
    with pytest.raises(DataError, match="cannot read the folder .*鞋"):
        run_import("folder", "--image-dir", pictures, "--captions-from", "folder", *SKIP)
    (pictures / "鞋").chmod(0o755)


@pytest.mark.parametrize("name", ["a\\u0000.jpg", "a\\ud800.jpg"])
def test_names_that_no_file_can_have(
    pictures: Path, tmp_path: Path, run_import: RunImport, name: str
) -> None:
    rows = f'{{"image": "{name}", "caption": "a"}}\n{{"image": "0.jpg", "caption": "b"}}\n'
    (tmp_path / "c.jsonl").write_text(rows)
    words = ("folder", "--image-dir", pictures, "--captions", tmp_path / "c.jsonl")
    with pytest.raises(DataError, match="row 1: "):
        run_import(*words)
    assert list(run_import(*words, *SKIP).by_name()) == ["0.jpg"]


def test_half_a_character_in_a_caption(pictures: Path, tmp_path: Path, run_import: RunImport) -> None:
    rows = '{"image": "0.jpg", "caption": "x\\ud800y"}\n{"image": "0.jpg", "caption": "b"}\n'
    (tmp_path / "c.jsonl").write_text(rows)
    words = ("folder", "--image-dir", pictures, "--captions", tmp_path / "c.jsonl")
    with pytest.raises(DataError, match="row 1: its caption is no text"):
        run_import(*words)
    out = run_import(*words, *SKIP)
    assert [text for _, text, _ in out.texts()] == ["b"]
    out.check_store("train")


def test_bytes_in_a_parquet_that_are_no_text(
    tmp_path: Path, run_import: RunImport, encode_picture: Encode
) -> None:
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    captions = pyarrow.array([b"a", "红".encode("gbk")], pyarrow.binary()).view(pyarrow.string())
    images = pyarrow.array([encode_picture(1), encode_picture(2)], pyarrow.binary())
    parquet.write_table(pyarrow.table({"image": images, "caption": captions}), tmp_path / "a.parquet")
    words = ("parquet", "--files", tmp_path / "a.parquet")
    with pytest.raises(DataError, match=r"a\.parquet row 2: it cannot be read .*utf-8"):
        run_import(*words)
    assert list(run_import(*words, *SKIP).by_name()) == ["a.parquet#0"]


@pytest.mark.parametrize(
    "text_id", ["true", "1" + "0" * 30, "9223372036854775808", "-9223372036854775808", "1.0", HUGE]
)
def test_ids_of_captions_that_are_none(
    pictures: Path, tmp_path: Path, run_import: RunImport, text_id: str
) -> None:
    annotations = (
        f'{{"id": {text_id}, "image_id": 1, "caption": "a"}}, {{"id": 5, "image_id": 1, "caption": "b"}}'
    )
    images = '[{"id": 1, "file_name": "0.jpg"}]'
    (tmp_path / "c.json").write_text(f'{{"images": {images}, "annotations": [{annotations}]}}')
    words = ("coco", "--image-dir", pictures, "--captions", tmp_path / "c.json")
    with pytest.raises(DataError, match=r"annotations\[0\]: |not JSON"):
        run_import(*words)
    if text_id == HUGE:  # the parser itself refuses it
        return
    out = run_import(*words, *SKIP)
    assert out.texts() == [(5, "b", [1])]
    out.check_store("train")


def test_ids_of_queries_that_are_none(tmp_path: Path, run_import: RunImport, encode_picture: Encode) -> None:
    picture = base64.b64encode(encode_picture(1)).decode()
    (tmp_path / "MR_train_imgs.tsv").write_text(f"\ufeff1\t{picture}\n{HUGE}\t{picture}\n٣\t{picture}\n")
    rows = [
        f'{{"query_id": {value}, "query_text": "a", "item_ids": [1]}}' for value in ("true", 10**22, HUGE, 8)
    ]
    rows.append('{"query_id": 9, "query_text": "b", "item_ids": [' + "9" * 4000 + "]}")
    (tmp_path / "MR_train_queries.jsonl").write_text("\n".join(rows))
    out = run_import("muge", "--data-dir", tmp_path, *SKIP)
    assert out.images() == {1: encode_picture(1)} and out.texts() == [(8, "a", [1])]
    assert len(out.bad_rows()) == 6 and all(len(row["reason"]) < 300 for row in out.bad_rows())
    out.check_store("train")


def test_a_number_of_coco_without_end(tmp_path: Path, run_import: RunImport) -> None:
    (tmp_path / "coco-cn_train.txt").write_text(f"COCO_train2014_{'9' * 200}\nCOCO_train2014_{'0' * 180}12\n")
    (tmp_path / "imageid.human-written-caption.txt").write_text(f"COCO_train2014_{HUGE}#0\t字\n")
    with pytest.raises(DataError, match=r"coco-cn_train\.txt row 1: "):
        run_import("coco-cn", "--data-dir", tmp_path, "--image-dir", tmp_path)


def test_the_highest_id_of_all(pictures: Path, tmp_path: Path, run_import: RunImport) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "train_names.jsonl").write_text(f'{{"image_id": {2**63 - 1}, "name": "zz.jpg"}}\n')
    with pytest.raises(DataError, match="have the id 9223372036854775807, after which there is none"):
        run_import(*add_row("csv", pictures, "2.jpg"))


def test_a_data_set_that_names_a_missing_file(tmp_path: Path, run_import: RunImport) -> None:
    pytest.importorskip("pyarrow")
    (tmp_path / "state.json").write_text('{"_data_files": [{"filename": "x.arrow"}]}')
    with pytest.raises(DataError, match=r"state\.json names x\.arrow, which is not beside it"):
        run_import("hf-datasets", "--data-dir", tmp_path)


def test_a_file_in_the_place_of_the_working_folder(
    pictures: Path, tmp_path: Path, run_import: RunImport
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / ".importing").write_text("")
    with pytest.raises(DataError, match=r"\.importing cannot be made a folder \(File exists\)"):
        run_import(*add_row("csv", pictures, "2.jpg"))


def test_the_older_command_takes_nothing_from_outside(pictures: Path, encode_picture: Encode) -> None:
    (pictures.parent / "secret.jpg").write_bytes(encode_picture(200))
    (pictures.parent / "c.csv").write_text("image_id,caption\n0.jpg,a\n../secret.jpg,b\n2.jpg,c\n")
    door = Path(__file__).resolve().parents[3] / "data_tools" / "dataset_transform.py"
    words = [
        "--csv",
        pictures.parent / "c.csv",
        "--image-dir",
        pictures,
        "--output-dir",
        pictures.parent / "out",
    ]
    done = subprocess.run([sys.executable, door, *words], capture_output=True, text=True)
    assert done.returncode == 2 and "row 3, column image_id: '../secret.jpg' lies outside of" in done.stderr
