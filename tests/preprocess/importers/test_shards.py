"""Tars, parquet files and saved Hugging Face data sets."""

from __future__ import annotations

import io
import json
import sys
import tarfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest

from cn_clip.errors import ConfigError, DataError

pyarrow = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")

RunImport = Callable[..., Any]
Encode = Callable[..., bytes]
HF_IMAGE = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])


def write_tar(path: Path, members: Iterable[tuple[str, bytes]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


@pytest.fixture
def tars(tmp_path: Path, encode_picture: Encode) -> Path:
    """Two tars of three samples, with what img2dataset puts beside them."""
    for shard in range(2):
        members = []
        for number in range(3):
            key, meta = f"{shard:05d}{number:04d}", {"caption": [f"元{number}", "二"], "status": "success"}
            members += [
                (f"{key}.jpg", encode_picture(shard * 10 + number)),
                (f"{key}.json", json.dumps(meta).encode()),
                (f"{key}.txt", f"图{shard}{number}\n".encode()),
            ]
        write_tar(tmp_path / "tars" / f"{shard:05d}.tar", members)
        (tmp_path / "tars" / f"{shard:05d}_stats.json").write_text("{}")
        (tmp_path / "tars" / f"{shard:05d}.parquet").write_bytes(b"")
    return tmp_path / "tars"


@pytest.mark.parametrize("pattern", ["", "{00000..00001}.tar", "0000{0,1}.tar"])
def test_tars(tars: Path, run_import: RunImport, encode_picture: Encode, pattern: str) -> None:
    out = run_import("webdataset", "--tars", tars / pattern if pattern else tars)
    assert out.by_name() == {
        f"{shard:05d}/{shard:05d}{number:04d}": (encode_picture(shard * 10 + number), [f"图{shard}{number}"])
        for shard in range(2)
        for number in range(3)
    }
    out.check_store("train")


def test_captions_in_the_json(tars: Path, run_import: RunImport) -> None:
    out = run_import("webdataset", "--tars", tars / "00001.tar", "--caption", "json.caption")
    assert [text for _, text, _ in out.texts()] == ["元0", "二", "元1", "二", "元2", "二"]


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"a.txt": b"x"}, "bad.tar, a: it has no picture"),
        ({"a.jpg": b"JPEG"}, "bad.tar, a: it has no .txt"),
        ({"a.jpg": b"JPEG", "a.txt": b" "}, "bad.tar, a: its caption is empty"),
        ({"a.jpg": b"JPEG", "a.txt": "红色".encode("gbk")}, "bad.tar, a: its .txt is not UTF-8"),
        ({"a.jpg": b"no", "a.txt": b"x"}, "bad.tar, a: not a picture of a known format"),
    ],
)
def test_bad_samples(
    tmp_path: Path, run_import: RunImport, encode_picture: Encode, members: Mapping[str, bytes], message: str
) -> None:
    good = encode_picture(1)
    samples = [(name, good if content == b"JPEG" else content) for name, content in members.items()]
    write_tar(tmp_path / "bad.tar", [*samples, ("b.jpg", good), ("b.txt", b"y")])
    with pytest.raises(DataError, match=message):
        run_import("webdataset", "--tars", tmp_path / "bad.tar")
    out = run_import(
        "webdataset", "--tars", tmp_path / "bad.tar", "--bad-rows", "skip", "--max-bad-share", "0.5"
    )
    assert out.by_name() == {"bad/b": (good, ["y"])} and len(out.bad_rows()) == 1


def test_a_cut_tar_gives_what_is_whole(tars: Path, run_import: RunImport) -> None:
    content = (tars / "00000.tar").read_bytes()
    (tars / "00000.tar").write_bytes(content[: content.rindex(b"000000002.txt") + 512 + 2])
    with pytest.raises(DataError, match=r"00000\.tar"):
        run_import("webdataset", "--tars", tars)
    out = run_import("webdataset", "--tars", tars, "--bad-rows", "skip", "--max-bad-share", "0.5")
    assert list(out.names()) == [
        "00000/000000000",
        "00000/000000001",
        "00001/000010000",
        "00001/000010001",
        "00001/000010002",
    ]
    assert "00000.tar" in out.bad_rows()[0]["where"]


def test_one_name_for_two_pictures(tmp_path: Path, run_import: RunImport, encode_picture: Encode) -> None:
    again = [("a.jpg", encode_picture(1)), ("a.txt", b"x"), ("b.jpg", encode_picture(2)), ("b.txt", b"y")]
    write_tar(tmp_path / "t.tar", [*again, ("a.jpg", encode_picture(1)), ("a.txt", b"z")])
    out = run_import("webdataset", "--tars", tmp_path / "t.tar")
    assert [(text, ids) for _, text, ids in out.texts()] == [("x", [0]), ("y", [1]), ("z", [0])]
    write_tar(tmp_path / "t.tar", [*again, ("a.jpg", encode_picture(3)), ("a.txt", b"z")])
    with pytest.raises(
        DataError, match="t.tar, a: a picture named 't/a' was given before with other content"
    ):
        run_import("webdataset", "--tars", tmp_path / "t.tar")


def test_two_tars_of_one_name(tars: Path, tmp_path: Path, run_import: RunImport) -> None:
    write_tar(tmp_path / "other" / "00000.tar", [])
    with pytest.raises(ConfigError, match=r"two|2 tars named 00000\.tar"):
        run_import("webdataset", "--tars", tars, tmp_path / "other" / "00000.tar")


def test_a_compressed_tar(tmp_path: Path, run_import: RunImport) -> None:
    (tmp_path / "a.tar.gz").write_bytes(b"")
    with pytest.raises(ConfigError, match=r"a\.tar\.gz is compressed: unpack it"):
        run_import("webdataset", "--tars", tmp_path / "a.tar.gz")


def test_what_the_library_webdataset_writes(
    tmp_path: Path, run_import: RunImport, encode_picture: Encode
) -> None:
    webdataset = pytest.importorskip("webdataset")
    pictures = {f"x{number:04d}": encode_picture(number) for number in range(5)}
    with webdataset.ShardWriter(f"{tmp_path}/w-%05d.tar", maxcount=3, verbose=0) as shards:
        for key, picture in pictures.items():
            shards.write({"__key__": f"sub.d/{key}", "jpg": picture, "json": {"caption": key}, "cls": 3})
    out = run_import(
        "webdataset", "--tars", f"{tmp_path}/w-{{00000..00001}}.tar", "--caption", "json.caption"
    )
    assert out.by_name() == {
        f"w-{place // 3:05d}/sub.d/{key}": (picture, [key])
        for place, (key, picture) in enumerate(pictures.items())
    }


def write_parquet(path: Path, **columns: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pyarrow.table(columns), path, row_group_size=2)


def test_parquet_of_img2dataset(tmp_path: Path, run_import: RunImport, encode_picture: Encode) -> None:
    pictures = [encode_picture(number) for number in range(3)]
    write_parquet(
        tmp_path / "p" / "00000.parquet",
        key=["000000000", "000000001", "000000002", "000000003"],
        url=["u"] * 4,
        txt=["图0", "图1", None, "图3"],
        status=["success", "success", "failed_to_download", "success"],
        jpg=pyarrow.array([*pictures[:2], None, pictures[2]], pyarrow.binary()),
    )
    with pytest.raises(DataError, match=r"00000\.parquet row 3, column txt: it is empty"):
        run_import("parquet", "--files", tmp_path / "p")
    words = ("--files", tmp_path / "p", "--bad-rows", "skip", "--max-bad-share", "0.5")
    out = run_import("parquet", *words)
    assert out.by_name() == {
        f"00000.parquet#{row}": (pictures[place], [f"图{row}"]) for place, row in enumerate((0, 1, 3))
    }
    out.check_store("train")
    out = run_import("parquet", *words, "--name-column", "key", "--start-anew")
    assert list(out.names()) == ["000000000", "000000001", "000000003"]


def hf_columns(encode_picture: Encode, first: int, path: str) -> dict[str, object]:
    images = [{"bytes": encode_picture(first), "path": "x.jpg"}, {"bytes": None, "path": path}]
    return {
        "image": pyarrow.array(images, HF_IMAGE),
        "captions": [[f"图{first}", "甲"], ["乙"]],
        "label": [1, 2],
    }


def test_parquet_of_hugging_face(
    tmp_path: Path, pictures: Path, run_import: RunImport, encode_picture: Encode
) -> None:
    write_parquet(
        tmp_path / "p" / "train-00000-of-00001.parquet", **hf_columns(encode_picture, 9, "鞋/3.jpg")
    )
    with pytest.raises(
        DataError, match="row 2, column image: it has the path '鞋/3.jpg' only; give .* --image-dir"
    ):
        run_import("parquet", "--files", tmp_path / "p")
    out = run_import("parquet", "--files", tmp_path / "p", "--image-dir", pictures)
    assert list(out.by_name().values()) == [
        (encode_picture(9), ["图9", "甲"]),
        ((pictures / "鞋" / "3.jpg").read_bytes(), ["乙"]),
    ]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            (),
            r"no column has a usual name, several columns could be meant \(text, txt\); "
            "set --image-column and --caption-column, each to one of: bild, wort, text, txt",
        ),
        (("--image-column", "bild"), r"several columns could be meant \(text, txt\); set --caption-column"),
        (("--image-column", "bilt"), "there is no column 'bilt'"),
        (
            ("--image-column", "bild", "--caption-column", "wort", "--name-column", "n"),
            "there is no column 'n'",
        ),
    ],
)
def test_columns_that_are_not_there(
    tmp_path: Path, run_import: RunImport, words: tuple, message: str
) -> None:
    write_parquet(tmp_path / "a.parquet", bild=[b"x"], wort=["a"], text=["b"], txt=["c"])
    with pytest.raises(DataError, match=message):
        run_import("parquet", "--files", tmp_path / "a.parquet", *words)


@pytest.mark.parametrize(("content", "name"), [(b"PAR1 no", "a.parquet"), (b"", "a.parquet")])
def test_a_broken_parquet(tmp_path: Path, run_import: RunImport, content: bytes, name: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=r"a\.parquet: not a whole parquet file"):
        run_import("parquet", "--files", tmp_path / name)


def save_to_disk(folder: Path, shards: list[dict[str, object]]) -> None:
    """The layout of `datasets.Dataset.save_to_disk`."""
    folder.mkdir(parents=True)
    names = [f"data-{number:05d}-of-{len(shards):05d}.arrow" for number in range(len(shards))]
    for name, columns in zip(names, shards, strict=True):
        table = pyarrow.table(columns)
        with (
            pyarrow.OSFile(str(folder / name), "wb") as file,
            pyarrow.ipc.new_stream(file, table.schema) as stream,
        ):
            stream.write_table(table, max_chunksize=1)
    state = {"_data_files": [{"filename": name} for name in names], "_split": None, "_format_type": None}
    (folder / "state.json").write_text(json.dumps(state))
    (folder / "dataset_info.json").write_text("{}")


def test_a_saved_data_set(
    tmp_path: Path, pictures: Path, run_import: RunImport, encode_picture: Encode
) -> None:
    shards = [hf_columns(encode_picture, first, f"{first}.jpg") for first in (0, 2)]
    save_to_disk(tmp_path / "saved", shards)
    out = run_import(
        "hf-datasets", "--data-dir", tmp_path / "saved", "--image-dir", pictures, "--split", "all"
    )
    assert out.by_name("all") == {
        "data-00000-of-00002.arrow#0": (encode_picture(0), ["图0", "甲"]),
        "data-00000-of-00002.arrow#1": ((pictures / "0.jpg").read_bytes(), ["乙"]),
        "data-00001-of-00002.arrow#0": (encode_picture(2), ["图2", "甲"]),
        "data-00001-of-00002.arrow#1": ((pictures / "2.jpg").read_bytes(), ["乙"]),
    }
    out.check_store("all")
    with pytest.raises(ConfigError, match="has no splits"):
        run_import("hf-datasets", "--data-dir", tmp_path / "saved", "--splits", "train")


def test_a_saved_data_set_of_splits(
    tmp_path: Path, pictures: Path, run_import: RunImport, encode_picture: Encode
) -> None:
    for first, split in enumerate(("train", "validation")):
        save_to_disk(tmp_path / "saved" / split, [hf_columns(encode_picture, first, "0.jpg")])
    (tmp_path / "saved" / "dataset_dict.json").write_text('{"splits": ["train", "validation"]}')
    out = run_import("hf-datasets", "--data-dir", tmp_path / "saved", "--image-dir", pictures)
    assert list(out.images("train").values())[0] == encode_picture(0)
    assert list(out.images("valid").values())[0] == encode_picture(1)
    assert not set(out.images("train")) & set(out.images("valid"))
    both = out.content()
    for name in ("valid", "validation"):
        out = run_import(
            "hf-datasets",
            "--data-dir",
            tmp_path / "saved",
            "--image-dir",
            pictures,
            "--splits",
            f"train,{name}",
        )
        assert out.content() == both
    with pytest.raises(ConfigError, match="has no 'test'; there are train, valid"):
        run_import("hf-datasets", "--data-dir", tmp_path / "saved", "--splits", "test")
    with pytest.raises(ConfigError, match="--valid-share: .* has splits of its own"):
        run_import("hf-datasets", "--data-dir", tmp_path / "saved", "--valid-share", "0.1")


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (None, "has no state.json: give the folder that save_to_disk wrote"),
        ("{", "state.json cannot be read"),
        ('{"_data_files": [{"filename": "../x.arrow"}]}', "'../x.arrow' is no name of a file beside it"),
        ('{"_data_files": [{"filename": "x.arrow"}]}', "x.arrow: not a whole Arrow file"),
    ],
)
def test_a_broken_data_set(tmp_path: Path, run_import: RunImport, state: str | None, message: str) -> None:
    (tmp_path / "saved").mkdir()
    (tmp_path / "saved" / "x.arrow").write_bytes(b"no arrow")
    if state is not None:
        (tmp_path / "saved" / "state.json").write_text(state)
    with pytest.raises(DataError, match=message):
        run_import("hf-datasets", "--data-dir", tmp_path / "saved")


@pytest.mark.parametrize("words", [("parquet", "--files", "."), ("hf-datasets", "--data-dir", ".")])
def test_without_pyarrow(
    run_import: RunImport, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...]
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(ConfigError, match=r"needs pyarrow: pip install cn_clip\[import\]"):
        run_import(*words)
