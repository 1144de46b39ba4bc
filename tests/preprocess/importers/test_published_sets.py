"""MUGE, Flickr30k-CN and COCO-CN, as files in the layouts their authors ship."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cn_clip.errors import CnClipError, ConfigError, DataError
from cn_clip.preprocess.importing.key_captions import join_words

RunImport = Callable[..., Any]
Encode = Callable[..., bytes]


def write_lines(path: Path, *lines: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


@pytest.fixture
def muge(tmp_path: Path, encode_picture: Encode) -> Path:
    folder = tmp_path / "Multimodal_Retrieval"
    for first, split in ((1000002, "train"), (1000102, "valid"), (1000202, "test")):
        rows = [(first + n, base64.urlsafe_b64encode(encode_picture(first + n)).decode()) for n in range(3)]
        write_lines(folder / f"MR_{split}_imgs.tsv", *(f"{item_id}\t{picture}" for item_id, picture in rows))
        queries: list[dict] = [
            {"query_id": 8426 + first, "query_text": "胖妹妹松紧腰长裤", "item_ids": [first]},
            {"query_id": 8428 + first, "query_text": "高级感托特包斜挎", "item_ids": [first + 1, first]},
        ]
        if split == "test":
            queries = [{key: row[key] for key in ("query_id", "query_text")} for row in queries]
        write_lines(
            folder / f"MR_{split}_queries.jsonl", *(json.dumps(row, ensure_ascii=False) for row in queries)
        )
    write_lines(folder / "example_pred.jsonl", "{}")
    return folder


def test_muge(muge: Path, run_import: RunImport, encode_picture: Encode) -> None:
    out = run_import("muge", "--data-dir", muge)
    for first, split in ((1000002, "train"), (1000102, "valid"), (1000202, "test")):
        assert out.images(split) == {first + n: encode_picture(first + n) for n in range(3)}
        ids = ([], []) if split == "test" else ([first], [first + 1, first])
        assert out.texts(split) == [
            (8426 + first, "胖妹妹松紧腰长裤", ids[0]),
            (8428 + first, "高级感托特包斜挎", ids[1]),  # one query of two pictures, not two queries
        ]
    assert len(out.content()) == 6  # ids are names already: there is no map
    out.check_store("train", "valid")


def test_splits_of_muge(muge: Path, run_import: RunImport) -> None:
    out = run_import("muge", "--data-dir", muge, "--splits", "valid,test")
    assert sorted(out.content()) == [
        "test_imgs.tsv",
        "test_texts.jsonl",
        "valid_imgs.tsv",
        "valid_texts.jsonl",
    ]
    with pytest.raises(ConfigError, match="has no 'dev'; there are train, valid, test"):
        run_import("muge", "--data-dir", muge, "--splits", "dev")


@pytest.mark.parametrize(
    ("name", "line", "message"),
    [
        ("MR_train_imgs.tsv", "17", r"MR_train_imgs\.tsv row 4: it needs an item id, a tab"),
        ("MR_train_imgs.tsv", "a.jpg\t/9j/", r"row 4: .*"),
        ("MR_train_imgs.tsv", "17\t%%%%", r"row 4: not base64"),
        ("MR_train_imgs.tsv", "17\tYWJj", r"row 4: not a picture of a known format"),
        ("MR_train_queries.jsonl", '{"query_id": 1, "query_text": " ", "item_ids": []}', "row 3: it needs"),
        ("MR_train_queries.jsonl", "{", r"MR_train_queries\.jsonl row 3: not JSON"),
        ("MR_train_queries.jsonl", '{"query_id": 1, "item_ids": []}', 'row 3: it needs "query_id"'),
        (
            "MR_train_queries.jsonl",
            '{"query_id": 1, "query_text": "a", "item_ids": [4]}',
            "row 3: there is no picture '4'",
        ),
        (
            "MR_train_queries.jsonl",
            '{"query_id": 1, "query_text": "a", "item_ids": ["4"]}',
            "a list of numbers",
        ),
    ],
)
def test_bad_rows_of_muge(muge: Path, run_import: RunImport, name: str, line: str, message: str) -> None:
    with (muge / name).open("a", encoding="utf-8") as file:
        file.write(f"{line}\n")
    with pytest.raises(DataError, match=message):
        run_import("muge", "--data-dir", muge)


def test_an_item_id_that_is_no_number(muge: Path, run_import: RunImport, encode_picture: Encode) -> None:
    with (muge / "MR_train_imgs.tsv").open("a", encoding="utf-8") as file:
        file.write(f"007\t{base64.b64encode(encode_picture(1)).decode()}\n")
    with pytest.raises(DataError, match="row 4: the id '007' is not a whole number of 64 bits"):
        run_import("muge", "--data-dir", muge)


@pytest.fixture
def flickr(tmp_path: Path, encode_picture: Encode) -> Path:
    """Folders of the archive, and `flickr30k-images`."""
    captions = {
        "flickr30kzhbbosontrain": ("zhb", ["两个 年轻 人 在 看 他们 的 手", "穿 T 恤 的 New York 男子"]),
        "flickr30kzhbbosonval": ("zhb", ["一 只 狗", "狗  在 跑"]),
        "flickr30kzhmbosontest": ("zhm", ["男子:n 在:p 玩:v ，:wd 警车:n", "球:n"]),
    }
    for start, (folder, (kind, texts)) in zip((1000092795, 36979, 1007129816), captions.items(), strict=True):
        numbers = [start, start + 1]
        lines = [f"{number}#{kind}#{n} {text}" for number in numbers for n, text in enumerate(texts)]
        write_lines(tmp_path / "cn" / folder / "ImageSets" / f"{folder}.txt", *map(str, numbers))
        write_lines(tmp_path / "cn" / folder / "TextData" / f"seg.{folder}.caption.txt", *lines)
        for number in numbers:
            path = tmp_path / "flickr30k-images" / f"{number}.jpg"
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(encode_picture(number))
    return tmp_path


def test_flickr30k_cn(flickr: Path, run_import: RunImport, encode_picture: Encode) -> None:
    out = run_import("flickr30k-cn", "--data-dir", flickr / "cn", "--image-dir", flickr / "flickr30k-images")
    starts = {"train": 1000092795, "valid": 36979, "test": 1007129816}
    texts = {
        "train": ["两个年轻人在看他们的手", "穿T恤的New York男子"],
        "valid": ["一只狗", "狗在跑"],
        "test": ["男子在玩，警车", "球"],
    }
    for split, start in starts.items():
        assert out.images(split) == {number: encode_picture(number) for number in (start, start + 1)}
        assert out.names(split) == {f"{number}.jpg": number for number in (start, start + 1)}
        rows = [(text, [number]) for number in (start, start + 1) for text in texts[split]]
        assert [(text, ids) for _, text, ids in out.texts(split)] == rows
    ids = [text_id for split in starts for text_id, _, _ in out.texts(split)]
    assert ids == list(range(12))
    out.check_store(*starts)


def test_a_caption_of_flickr_that_is_none(flickr: Path, run_import: RunImport) -> None:
    name = "flickr30kzhbbosonval"
    write_lines(flickr / "cn" / name / "TextData" / f"seg.{name}.caption.txt", "36979#zhb#0 狗", "36979 狗")
    with pytest.raises(DataError, match=r"caption\.txt row 2: not of the form PICTURE#NUMBER CAPTION"):
        run_import("flickr30k-cn", "--data-dir", flickr / "cn", "--image-dir", flickr / "flickr30k-images")


def test_a_list_of_pictures_that_is_no_text(flickr: Path, run_import: RunImport) -> None:
    name = "flickr30kzhbbosonval"
    (flickr / "cn" / name / "ImageSets" / f"{name}.txt").write_bytes(b"36979\n\xff\xfe\n")
    with pytest.raises(DataError, match=r"flickr30kzhbbosonval\.txt row 2: not UTF-8"):
        run_import("flickr30k-cn", "--data-dir", flickr / "cn", "--image-dir", flickr / "flickr30k-images")


@pytest.mark.parametrize(
    ("segmented", "joined"),
    [
        ("一 只 狗", "一只狗"),
        ("狗:n 跑:v ：:wm", "狗跑："),
        ("比分 3:2 领先", "比分3:2领先"),  # not every word has a tag
        ("a dog 跑 了", "a dog跑了"),
        ("", ""),
    ],
)
def test_words_are_joined(segmented: str, joined: str) -> None:
    assert join_words(segmented) == joined


@pytest.fixture
def coco_cn(tmp_path: Path, encode_picture: Encode) -> Path:
    names = {
        "train": ["COCO_train2014_000000000101", "COCO_val2014_000000000042"],
        "val": ["COCO_train2014_000000000103"],
        "test": ["COCO_val2014_000000000208"],
    }
    folder = tmp_path / "coco-cn-version1805v1.1"
    every = [name for split in names.values() for name in split]
    for split, chosen in names.items():
        write_lines(folder / f"coco-cn_{split}.txt", *chosen)
    written = [f"{name}#{n}\t{name[-3:]}号, 第{n}句" for name in reversed(every) for n in (0, 1)]
    write_lines(folder / "imageid.human-written-caption.txt", *written)
    write_lines(folder / "imageid.manually-translated-caption.txt", f"{every[-1]}#0\t译")
    write_lines(
        folder / "imageid.machine-translated-caption.bosonseg.txt", *(f"{name}#0 一 只 猫" for name in every)
    )
    for name in every:
        path = tmp_path / "coco" / name.split("_")[1] / f"{name}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode_picture(int(name[-3:])))
    return tmp_path


def words_of(folder: Path) -> tuple[object, ...]:
    return ("coco-cn", "--data-dir", folder / "coco-cn-version1805v1.1", "--image-dir", folder / "coco")


def test_coco_cn(coco_cn: Path, run_import: RunImport, encode_picture: Encode) -> None:
    out = run_import(*words_of(coco_cn))
    for split, numbers in (("train", [101, 42]), ("valid", [103]), ("test", [208])):
        assert out.images(split) == {number: encode_picture(number) for number in numbers}
        expected = {(f"{number:03d}号, 第{n}句", number) for number in numbers for n in (0, 1)}
        assert {(text, ids[0]) for _, text, ids in out.texts(split)} == expected
    assert out.names("train") == {"COCO_train2014_000000000101.jpg": 101, "COCO_val2014_000000000042.jpg": 42}
    out.check_store("train", "valid", "test")


def test_other_captions_of_coco_cn_and_a_flat_folder(coco_cn: Path, run_import: RunImport) -> None:
    for path in list((coco_cn / "coco").rglob("*.jpg")):
        path.rename(coco_cn / "coco" / path.name)
    out = run_import(*words_of(coco_cn), "--captions", "machine-translated", "--splits", "train")
    assert [text for _, text, _ in out.texts()] == ["一只猫"] * 2
    out = run_import(*words_of(coco_cn), "--captions", "manually-translated", "--splits", "test")
    assert [(text, ids) for _, text, ids in out.texts("test")] == [("译", [208])]
    with pytest.raises(DataError, match="the split train would have no caption"):
        run_import(*words_of(coco_cn), "--captions", "manually-translated", "--splits", "train")


@pytest.mark.parametrize(
    ("words", "kind", "message"),
    [
        (("muge", "--data-dir", "."), DataError, "has none of the files of a split"),
        (
            ("flickr30k-cn", "--data-dir", ".", "--image-dir", "."),
            DataError,
            "has none of the files of a split",
        ),
        (
            ("coco-cn", "--data-dir", ".", "--image-dir", "."),
            DataError,
            "there is no file imageid.human-written",
        ),
        (("coco-cn", "--data-dir", "no", "--image-dir", "."), DataError, "--data-dir no is not a folder"),
    ],
)
def test_a_wrong_folder(
    tmp_path: Path,
    run_import: RunImport,
    monkeypatch: pytest.MonkeyPatch,
    words: tuple[str, ...],
    kind: type[CnClipError],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(kind, match=message):
        run_import(*words)
