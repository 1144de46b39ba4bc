"""From a table and a folder of pictures to the files of splits, to an LMDB."""

from __future__ import annotations

import base64
import io
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image

from cn_clip.data.store import open_split
from cn_clip.errors import CnClipError, ConfigError, DataError
from cn_clip.preprocess.importing.tables import TableRow, TableShape, read_table
from cn_clip.preprocess.splits.build import BuildOptions, build_split
from cn_clip.preprocess.splits.split_files import find_splits
from data_tools.dataset_transform import main

DOOR = Path(__file__).resolve().parents[2] / "data_tools" / "dataset_transform.py"
NUM_PICTURES = 10


def encode(shade: int, format: str) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (9, 7), (shade, 0, 255 - shade)).save(stream, format)
    return stream.getvalue()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """`images/` of ten pictures and `captions.csv` with two captions of each, not in the order of the names."""
    (tmp_path / "images" / "more").mkdir(parents=True)
    names = [f"{n}.png" for n in range(8)] + ["more/8.jpg", "更多.png"]
    for n, name in enumerate(names):
        (tmp_path / "images" / name).write_bytes(encode(n * 20, "JPEG" if name.endswith("jpg") else "PNG"))
    rows = [f'{name},"图{n}, 第{k}句",x' for k in (1, 2) for n, name in reversed(list(enumerate(names)))]
    write_table(tmp_path, "image_id,caption,extra\r\n" + "".join(f"{row}\r\n" for row in rows))
    return tmp_path


def write_table(folder: Path, text: str, encoding: str = "utf-8-sig") -> None:
    (folder / "captions.csv").write_bytes(text.encode(encoding))


def words(folder: Path, *more: str) -> list[str]:
    places = {"--csv": "captions.csv", "--image-dir": "images", "--output-dir": "out"}
    return [word for flag, name in places.items() for word in (flag, str(folder / name))] + list(more)


def read_images(folder: Path, split: str) -> dict[int, bytes]:
    rows = [line.split("\t") for line in (folder / "out" / f"{split}_imgs.tsv").read_text().splitlines()]
    assert len({image_id for image_id, _ in rows}) == len(rows)
    return {int(image_id): base64.b64decode(picture, validate=True) for image_id, picture in rows}


def read_texts(folder: Path, split: str) -> list[dict]:
    text = (folder / "out" / f"{split}_texts.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def read_names(folder: Path, split: str) -> dict[int, str]:
    names = json.loads((folder / "out" / f"{split}_image_ids.json").read_text(encoding="utf-8"))
    return {int(image_id): name for image_id, name in names.items()}


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((folder / "out").glob("*"))}


def test_each_picture_once_with_its_bytes_in_one_split_only(folder: Path) -> None:
    main(words(folder))
    names: dict[int, str] = {}
    for split, size in (("train", 8), ("valid", 2)):
        images, texts, names_here = (
            read_images(folder, split),
            read_texts(folder, split),
            read_names(folder, split),
        )
        assert len(images) == size and list(images) == sorted(images) == list(names_here)
        for image_id, picture in images.items():
            assert picture == (folder / "images" / names_here[image_id]).read_bytes()
        assert Counter(row["image_ids"][0] for row in texts) == dict.fromkeys(images, 2)
        assert not names.keys() & names_here.keys()
        names |= names_here
    assert [names[image_id] for image_id in range(NUM_PICTURES)] == sorted(names.values())
    ids = [row["text_id"] for split in ("train", "valid") for row in read_texts(folder, split)]
    assert sorted(ids) == list(range(2 * NUM_PICTURES))


def test_captions_stay_with_their_pictures(folder: Path) -> None:
    main(words(folder, "--splits", "test"))
    names = read_names(folder, "test")
    number = {name: n for n, name in enumerate([f"{n}.png" for n in range(8)] + ["more/8.jpg", "更多.png"])}
    texts = read_texts(folder, "test")
    assert len(texts) == 2 * NUM_PICTURES
    for k, half in ((1, texts[:NUM_PICTURES]), (2, texts[NUM_PICTURES:])):
        assert all(row["text"] == f"图{number[names[row['image_ids'][0]]]}, 第{k}句" for row in half)


def test_ids_and_splits_do_not_depend_on_the_order_of_rows(folder: Path) -> None:
    main(words(folder))
    first = contents(folder)
    head, *rows = (folder / "captions.csv").read_text(encoding="utf-8-sig").splitlines(keepends=True)
    write_table(folder, head + "".join(reversed(rows)), "utf-8")
    main(words(folder))
    again = contents(folder)
    for name in ("train_imgs.tsv", "valid_imgs.tsv", "train_image_ids.json", "valid_image_ids.json"):
        assert first[name] == again[name]


def test_seed_and_share_choose_the_held_out_pictures(folder: Path) -> None:
    held_out = []
    for seed in ("1", "1", "2"):
        main(words(folder, "--seed", seed, "--valid-share", "0.5", "--splits", "train,dev"))
        held_out.append(set(read_images(folder, "dev")))
        assert len(held_out[-1]) == len(read_images(folder, "train")) == 5
    assert held_out[0] == held_out[1] != held_out[2]


def test_columns_by_name_and_repeated_rows(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_table(folder, "说明,文件\n猫,1.png\n\n猫,./1.png\n 猫 ,1.png\n狗,1.png\n猫,2.png\n")
    main(words(folder, "--image-column", "文件", "--caption-column", "说明", "--splits", "train"))
    assert [(row["text"], row["image_ids"]) for row in read_texts(folder, "train")] == [
        ("猫", [0]),
        ("狗", [0]),
        ("猫", [1]),
    ]
    out = capsys.readouterr().out
    assert "train: 2 pictures, 3 captions\n2 repeated rows of the same picture and caption kept once\n" in out


def test_rows_are_counted_in_lines_of_the_file(folder: Path) -> None:
    write_table(folder, 'image_id,caption\n1.png,"两\n行"\n\n2.png,"a ""b"", c"\n')
    rows = read_table(folder / "captions.csv", TableShape())
    assert rows == [TableRow("1.png", "两\n行", 2), TableRow("2.png", 'a "b", c', 5)]


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("", "captions.csv is empty"),
        ("image_id,caption\n\n", "captions.csv has no rows"),
        (
            "file,caption\n1.png,a\n",
            "row 1: there is no column 'image_id'; set --image-column to one of: file, caption",
        ),
        ("image_id,text\n1.png,a\n", "row 1: there is no column 'caption'; set --caption-column"),
        ("image_id,caption,caption\n1.png,a,b\n", "row 1: 2 columns are named 'caption'"),
        ("image_id,caption\n1.png,a\n\n1.png,\n", "row 4, column caption: it is empty"),
        ("image_id,caption\n ,a\n", "row 2, column image_id: it is empty"),
        ("image_id,caption\n1.png,a,b\n", "row 2: it has 3 cells, not 2"),
        ("image_id,caption\n1.png\n", "row 2: it has 1 cell, not 2"),
        ('image_id,caption\n1.png,a\n2.png,"b\n3.png,c\n', "row 3: not CSV"),
        ('image_id,caption\n1.png,"a"b\n', "row 2: not CSV"),
        (
            "image_id,caption\n1.png,a\n11.png,b\n12.png,c\n11.png,d\n",
            r"row 3, column image_id: 2 files that",
        ),
        ("image_id,caption\nmore,a\n", r"row 2, column image_id: 1 file that .* does not have \(more\)"),
        ("image_id,caption\n1.png,a\nbad.png,b\n", r"row 3, column image_id: .*bad\.png: not a picture"),
        ("image_id,caption\n1.png,a\ncut.png,b\n", r"row 3, column image_id: .*cut\.png: the picture is cut"),
    ],
)
def test_a_bad_table_is_one_sentence_and_writes_nothing(folder: Path, table: str, message: str) -> None:
    (folder / "images" / "bad.png").write_bytes(b"no picture")
    (folder / "images" / "cut.png").write_bytes(encode(3, "PNG")[:60])
    write_table(folder, table)
    with pytest.raises(DataError, match=message) as caught:
        main(words(folder, "--splits", "train"))
    assert "captions.csv" in str(caught.value) and "\n" not in str(caught.value)
    assert not list((folder / "out").glob("*"))


def test_a_table_of_another_encoding_is_named_with_its_row(folder: Path) -> None:
    write_table(folder, "image_id,caption\n1.png,a\n2.png,红色的猫\n", "gbk")
    with pytest.raises(DataError, match=r"captions\.csv row 3: not UTF-8"):
        main(words(folder))


def test_files_of_an_earlier_run_stay_when_a_picture_is_bad(folder: Path) -> None:
    main(words(folder))
    before = contents(folder)
    (folder / "images" / "7.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"7\.png: it is empty"):
        main(words(folder, "--seed", "3"))
    assert contents(folder) == before


@pytest.mark.parametrize(
    ("flag", "value", "kind", "message"),
    [
        ("--csv", "nowhere.csv", DataError, "no file nowhere.csv"),
        ("--image-dir", "nowhere", DataError, "no folder nowhere"),
        ("--splits", "a,b,c", ConfigError, "--splits is 'a,b,c'"),
        ("--splits", "a,a", ConfigError, "--splits is 'a,a'"),
        ("--splits", "", ConfigError, "--splits: ''"),
        ("--splits", "../a", ConfigError, "'../a' cannot name a split"),
        ("--valid-share", "1", ConfigError, "--valid-share is 1.0"),
        ("--valid-share", "0.99", DataError, "leaves none for train"),
    ],
)
def test_bad_flags(folder: Path, flag: str, value: str, kind: type[CnClipError], message: str) -> None:
    with pytest.raises(kind, match=message):
        main(words(folder, flag, value))
    assert not list((folder / "out").glob("*"))


def test_an_output_folder_that_is_a_file(folder: Path) -> None:
    (folder / "out").write_text("x")
    with pytest.raises(DataError, match="cannot make the folder --output-dir"):
        main(words(folder))


def test_by_path_from_anywhere_then_a_build_reads_it(folder: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(DOOR), *words(folder)], cwd=folder, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "train: 8 pictures, 16 captions\nvalid: 2 pictures, 4 captions\n" in done.stdout
    for files in find_splits(folder / "out", "train,valid"):
        report = build_split(files, folder / "lmdb", BuildOptions())
        assert (report.num_pairs, report.num_repeats, report.num_unpaired) == (2 * report.num_images, 0, 0)
        split = open_split(folder / "lmdb" / files.name)
        names, texts = read_names(folder, files.name), read_texts(folder, files.name)
        for place, row in enumerate(texts):
            pair = split.pairs.read(place)
            assert (pair.image_id, pair.text_id, pair.caption) == (
                row["image_ids"][0],
                row["text_id"],
                row["text"],
            )
            assert split.images.read(pair.image_id) == (folder / "images" / names[pair.image_id]).read_bytes()


def test_help_is_answered_without_torch(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-X", "importtime", str(DOOR), "--help"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0 and "--image-column" in done.stdout
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "cn_clip.errors" in imported and not {"torch", "PIL", "numpy"} & imported


def test_flags_with_underscores(folder: Path) -> None:
    given = [word.replace("-dir", "_dir") if word.startswith("--") else word for word in words(folder)]
    main([*given, "--valid_share=0.3"])
    assert len(read_images(folder, "valid")) == 3
