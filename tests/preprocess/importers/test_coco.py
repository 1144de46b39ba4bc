"""COCO's caption JSON."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cn_clip.errors import DataError
from cn_clip.preprocess.importing import json_arrays
from cn_clip.preprocess.importing.json_arrays import iterate_array

RunImport = Callable[..., Any]
IMAGES = [{"id": 391895, "file_name": "0.jpg", "width": 12}, {"id": 7, "file_name": "鞋/3.jpg", "license": 3}]
ANNOTATIONS = [
    {"image_id": 7, "id": 12, "caption": "一双鞋 "},
    {"image_id": 391895, "id": 5, "caption": "图"},
    {"image_id": 7, "id": 3, "caption": "鞋"},
]


def write(path: Path, **fields: object) -> Path:
    path.write_text(json.dumps(fields, ensure_ascii=False), encoding="utf-8")
    return path


@pytest.mark.parametrize("order", [("images", "annotations"), ("annotations", "images")])
def test_captions(pictures: Path, tmp_path: Path, run_import: RunImport, order: tuple[str, str]) -> None:
    arrays = {"images": IMAGES, "annotations": ANNOTATIONS}
    fields = {"info": {"year": 2014, "images": [1]}, **{name: arrays[name] for name in order}, "licenses": []}
    captions = write(tmp_path / "captions_val2014.json", **fields)
    out = run_import("coco", "--captions", captions, "--image-dir", pictures, "--split", "valid")
    assert out.images("valid") == {
        391895: (pictures / "0.jpg").read_bytes(),
        7: (pictures / "鞋" / "3.jpg").read_bytes(),
    }
    assert out.names("valid") == {"0.jpg": 391895, "鞋/3.jpg": 7}
    assert out.texts("valid") == [(12, "一双鞋", [7]), (5, "图", [391895]), (3, "鞋", [7])]
    out.check_store("valid")


@pytest.mark.parametrize(
    ("images", "annotations", "message"),
    [
        ([{"id": "7", "file_name": "0.jpg"}], ANNOTATIONS, r"images\[0\]: it needs \"id\", a whole number"),
        ([{"id": 7}], ANNOTATIONS, r"images\[0\]: it needs"),
        ([{"id": 7, "file_name": "9.jpg"}], ANNOTATIONS, r"images\[0\]: cannot read .*9\.jpg"),
        (
            [{"id": 2**70, "file_name": "0.jpg"}],
            ANNOTATIONS,
            r"images\[0\]: the id .* is not a whole number of 64 bits",
        ),
        (IMAGES, [{"image_id": 7, "id": 1}], r"annotations\[0\]: it needs"),
        (IMAGES, [{"image_id": 7, "id": 1, "caption": " "}], r"annotations\[0\]: it needs"),
        (IMAGES, [{"image_id": 8, "id": 1, "caption": "a"}], r"annotations\[0\]: there is no picture '8'"),
    ],
)
def test_bad_rows(
    pictures: Path, tmp_path: Path, run_import: RunImport, images: list, annotations: list, message: str
) -> None:
    captions = write(tmp_path / "c.json", images=images, annotations=annotations)
    with pytest.raises(DataError, match=message):
        run_import("coco", "--captions", captions, "--image-dir", pictures)


def test_one_id_for_two_pictures_is_said(pictures: Path, tmp_path: Path, run_import: RunImport) -> None:
    images = [{"id": 7, "file_name": "0.jpg"}, {"id": 7, "file_name": "2.jpg"}]
    captions = write(tmp_path / "c.json", images=images, annotations=ANNOTATIONS)
    with pytest.raises(
        DataError, match=r"images\[1\]: a picture named '2\.jpg' was given before with other content"
    ):
        run_import("coco", "--captions", captions, "--image-dir", pictures)


@pytest.mark.parametrize("chunk", [1, 7, 1 << 20])
def test_arrays_are_read_an_object_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk: int
) -> None:
    monkeypatch.setattr(json_arrays, "_CHUNK_CHARS", chunk)
    rows = [{"a": [1, {"b": "]}"}]}, 12, 345, "文", None, {}, []]
    path = write(
        tmp_path / "x.json", before={"wanted": [0]}, number=12.5, skipped=[[1], [2]], wanted=rows, after=1
    )
    assert list(iterate_array(path, "wanted")) == rows
    assert list(iterate_array(path, "skipped")) == [[1], [2]]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"annotations": []}', "it has no array 'images'"),
        ('{"images": [{"id": 1}, {"id": 2', "not JSON .*is the file whole"),
        ('{"images": [{"id": 1} {"id": 2}]}', "expected ',', not '{'"),
        ("[]", "expected '{', not '\\['"),
        ("", "expected '{', not ''"),
        ('{"images": 3}', "it has no array 'images'"),
    ],
)
def test_broken_json(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(DataError, match=message):
        list(iterate_array(tmp_path / "x.json", "images"))


def test_json_that_is_not_utf8(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_bytes('{"images": [{"id": "红色"}]}'.encode("gbk"))
    with pytest.raises(DataError, match="not UTF-8"):
        list(iterate_array(tmp_path / "x.json", "images"))
