"""Input that changes between two runs: no picture is lost, none is doubled, and ids stay."""

from __future__ import annotations

import io
import os
import random
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cn_clip.errors import ConfigError, DataError
from cn_clip.preprocess.importing import run as run_module
from cn_clip.preprocess.importing.items import FileContent, Item, Part, Picture, Source, Text
from cn_clip.preprocess.importing.run import run_import as run_source
from cn_clip.preprocess.importing.run_options import RunOptions
from cn_clip.preprocess.importing.split_choice import SplitChoice

RunImport = Callable[..., Any]
Encode = Callable[..., bytes]
SKIP = ("--bad-rows", "skip", "--max-bad-share", "1")


def add(folder: Path, name: str, picture: bytes) -> None:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(picture)
    path.with_suffix(".txt").write_text(f"说明 {name}", encoding="utf-8", errors="backslashreplace")


def remove(folder: Path, name: str) -> None:
    (folder / name).unlink()
    (folder / name).with_suffix(".txt").unlink()


@pytest.fixture
def folder(tmp_path: Path, encode_picture: Encode) -> Path:
    """Pictures b to f with their captions beside them; d is broken, so that an import stops there."""
    for number, name in enumerate("bcdef"):
        add(tmp_path / "images", f"{name}.jpg", encode_picture(number))
    (tmp_path / "images" / "d.jpg").write_bytes(b"broken")
    return tmp_path / "images"


def require_whole(out: Any, folder: Path) -> None:
    """Every picture that lies there, once, with its own bytes and caption."""
    names = sorted(path.name for path in folder.glob("*.jpg"))
    assert out.by_name() == {name: ((folder / name).read_bytes(), [f"说明 {name}"]) for name in names}
    assert len(out.texts()) == len(out.images()) == len(names)


CHANGES: dict[str, Callable[[Path, Encode], None]] = {
    "nothing": lambda folder, encode: None,
    "one taken away before": lambda folder, encode: remove(folder, "b.jpg"),
    "one added before": lambda folder, encode: add(folder, "a.jpg", encode(70)),
    "one for another": lambda folder, encode: (remove(folder, "b.jpg"), add(folder, "a.jpg", encode(7)))[0],
    "one added after": lambda folder, encode: add(folder, "g.jpg", encode(71)),
    "one taken away after": lambda folder, encode: remove(folder, "f.jpg"),
    "a folder before": lambda folder, encode: (folder / "a").mkdir(),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_folder_that_changes_after_an_interruption(
    folder: Path, run_import: RunImport, encode_picture: Encode, change: Callable[[Path, Encode], None]
) -> None:
    with pytest.raises(DataError, match=r"d\.jpg: not a picture"):
        run_import("folder", "--image-dir", folder)
    (folder / "d.jpg").write_bytes(encode_picture(60))
    change(folder, encode_picture)
    out = run_import("folder", "--image-dir", folder)
    require_whole(out, folder)
    assert sorted(out.images()) == list(range(len(out.images())))


@pytest.mark.parametrize("seed", range(5))
def test_any_changes_after_interruptions(
    tmp_path: Path, run_import: RunImport, encode_picture: Encode, seed: int
) -> None:
    """Pictures come and go between runs that stop at a broken one; what was read keeps its bytes, and so does each name here."""
    generator, folder = random.Random(seed), tmp_path / "images"
    names = [f"{number}.jpg" for number in range(10)]
    ids: dict[str, int] = {}
    for name in names[::2]:
        add(folder, name, encode_picture(int(name[0])))
    for _ in range(18):
        name = generator.choice(names)
        is_new = not (folder / name).exists()
        if is_new:
            add(folder, name, encode_picture(int(name[0])))
        elif generator.random() < 0.4:
            remove(folder, name)
        if (folder / name).exists() and not (tmp_path / "out" / ".importing").exists():
            (folder / name).write_bytes(b"broken")
        broken = [path for path in folder.glob("*.jpg") if path.read_bytes() == b"broken"]
        if broken:
            with pytest.raises(DataError, match="not a picture"):
                run_import("folder", "--image-dir", folder)
            for path in generator.sample(broken, 1):
                path.write_bytes(encode_picture(int(path.stem)))
        elif any(folder.glob("*.jpg")):
            out = run_import("folder", "--image-dir", folder)
            require_whole(out, folder)
            assert all(ids.setdefault(name, image_id) == image_id for name, image_id in out.names().items())
            assert len(set(ids.values())) == len(ids)


def test_a_caption_that_changes_after_an_interruption(
    folder: Path, run_import: RunImport, encode_picture: Encode
) -> None:
    with pytest.raises(DataError, match=r"d\.jpg: not a picture"):
        run_import("folder", "--image-dir", folder)
    (folder / "d.jpg").write_bytes(encode_picture(60))
    (folder / "b.txt").write_text("一\n二\n三", encoding="utf-8")  # more items than before
    out = run_import("folder", "--image-dir", folder)
    assert [text for _, text, _ in out.texts()] == ["一", "二", "三", *(f"说明 {n}.jpg" for n in "cdef")]
    assert len(out.images()) == 5


def test_much_work_on_a_folder_that_changed_is_not_thrown_away_unasked(
    folder: Path, run_import: RunImport, encode_picture: Encode, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(DataError, match=r"d\.jpg: not a picture"):
        run_import("folder", "--image-dir", folder)
    monkeypatch.setattr(run_module, "_WORTH_KEEPING_SECONDS", -1)
    (folder / "d.jpg").write_bytes(encode_picture(60))
    remove(folder, "b.jpg")
    with pytest.raises(ConfigError, match="an unfinished import .* --start-anew"):
        run_import("folder", "--image-dir", folder)
    require_whole(run_import("folder", "--image-dir", folder, "--start-anew"), folder)


def test_a_folder_that_changes_while_files_take_their_places(
    folder: Path, run_import: RunImport, encode_picture: Encode, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "d.jpg").write_bytes(encode_picture(60))

    def stop(*words: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(run_module, "finish", stop)
        run_import("folder", "--image-dir", folder)
    remove(folder, "b.jpg")
    add(folder, "g.jpg", encode_picture(71))
    require_whole(run_import("folder", "--image-dir", folder), folder)


def write_table(path: Path, names: str) -> None:
    path.write_text("".join(["image,caption\n", *(f"{name}.jpg,说明 {name}.jpg\n" for name in names)]))


def keep_times(path: Path, change: Callable[[], object]) -> None:
    before = path.stat()
    change()
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_size == before.st_size


def test_a_table_edited_in_the_middle(folder: Path, run_import: RunImport, encode_picture: Encode) -> None:
    table = folder.parent / "c.csv"
    words = ("folder", "--image-dir", folder, "--captions", table)
    write_table(table, "bcdef")
    with pytest.raises(DataError, match="row 4: not a picture"):
        run_import(*words)
    (folder / "d.jpg").write_bytes(encode_picture(60))
    write_table(table, "cdebf")
    require_whole(run_import(*words), folder)


def test_a_table_edited_without_a_trace_in_size_and_time(
    folder: Path, run_import: RunImport, encode_picture: Encode
) -> None:
    table = folder.parent / "c.csv"
    words = ("folder", "--image-dir", folder, "--captions", table)
    write_table(table, "bcdef")
    with pytest.raises(DataError, match="row 4: not a picture"):
        run_import(*words)
    (folder / "d.jpg").write_bytes(encode_picture(60))
    keep_times(table, lambda: write_table(table, "cdebf"))
    require_whole(run_import(*words), folder)


def write_tar(path: Path, samples: dict[str, bytes]) -> None:
    with tarfile.open(path, "w") as tar:
        for key, picture in samples.items():
            for ending, content in (("jpg", picture), ("txt", f"说明 {key}".encode())):
                info = tarfile.TarInfo(f"{key}.{ending}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))


def test_tars_replaced_without_a_trace_in_size_and_time(
    tmp_path: Path, run_import: RunImport, encode_picture: Encode
) -> None:
    tars = tmp_path / "tars"
    tars.mkdir()
    pictures = {key: encode_picture(number) for number, key in enumerate("abcd")}
    broken = b"no" + pictures["d"][2:]
    write_tar(tars / "0.tar", {key: pictures[key] for key in "ab"})
    write_tar(tars / "1.tar", {"c": pictures["c"], "d": broken})
    with pytest.raises(DataError, match=r"1\.tar, d: not a picture"):
        run_import("webdataset", "--tars", tars)
    for name, keys in (("0.tar", "ba"), ("1.tar", "dc")):
        keep_times(tars / name, lambda: write_tar(tars / name, {key: pictures[key] for key in keys}))  # noqa: B023
    out = run_import("webdataset", "--tars", tars)
    assert out.by_name() == {
        f"{tar}/{key}": (pictures[key], [f"说明 {key}"])
        for tar, keys in ((0, "ba"), (1, "dc"))
        for key in keys
    }


@pytest.mark.parametrize("which", [0, 1])
def test_a_remote_tar_that_changes_after_an_interruption(
    run_import: RunImport, encode_picture: Encode, tmp_path: Path, which: int
) -> None:
    """Of two tars in a store, in which the import stopped in the second one."""
    memory = pytest.importorskip("fsspec").filesystem("memory")
    pictures = {key: encode_picture(number) for number, key in enumerate("abcdx")}

    def put(number: int, samples: dict[str, bytes]) -> None:
        write_tar(tmp_path / "t.tar", samples)
        memory.pipe(f"/changed/{number}.tar", (tmp_path / "t.tar").read_bytes())

    put(0, {key: pictures[key] for key in "ab"})
    put(1, {"c": pictures["c"], "d": b"broken"})
    words = ("webdataset", "--tars", "memory://changed/0.tar", "memory://changed/1.tar")
    with pytest.raises(DataError, match=r"1\.tar, d: not a picture"):
        run_import(*words)
    put(1, {key: pictures[key] for key in ("cd" if which == 0 else "xcd")})
    if which == 0:
        put(0, {key: pictures[key] for key in "xab"})
    out = run_import(*words)
    keys = [(0, "xab"), (1, "cd")] if which == 0 else [(0, "ab"), (1, "xcd")]
    assert out.by_name() == {
        f"{tar}/{key}": (pictures[key], [f"说明 {key}"]) for tar, keys in keys for key in keys
    }


def test_a_parquet_replaced_without_a_trace_in_size_and_time(
    tmp_path: Path, run_import: RunImport, encode_picture: Encode
) -> None:
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "a.parquet"
    pictures = [encode_picture(number, "BMP") for number in range(3)]  # all of one size
    broken = b"no" + pictures[2][2:]

    def write(images: list[bytes], captions: list[str]) -> None:
        table = pyarrow.table({"image": pyarrow.array(images, pyarrow.binary()), "caption": captions})
        parquet.write_table(table, path, compression="none", use_dictionary=False, write_statistics=False)

    write([pictures[0], pictures[1], broken], ["一", "二", "三"])
    with pytest.raises(DataError, match="row 3: not a picture"):
        run_import("parquet", "--files", path)
    order = [1, 0, 2]
    keep_times(path, lambda: write([pictures[place] for place in order], ["二", "一", "三"]))
    out = run_import("parquet", "--files", path)
    assert list(out.by_name().values()) == [(pictures[place], ["一二三"[place]]) for place in order]


def test_a_file_that_changes_while_it_is_read(tmp_path: Path, encode_picture: Encode) -> None:
    (tmp_path / "a.jpg").write_bytes(encode_picture(1))
    table = tmp_path / "c.csv"
    table.write_text("one")
    is_edited = []

    def items() -> Iterator[Item]:
        yield Picture("a.jpg", FileContent(tmp_path / "a.jpg"), "here")
        yield Text(table.read_text(), ("a.jpg",), "here")
        if not is_edited:
            is_edited.append(True)
            table.write_text("two lines")

    choice = SplitChoice()
    source = Source(parts=[Part("rows", items, (table,))], splits=choice.names(), choice=choice)
    options = RunOptions(output_dir=tmp_path / "out", workers=0)
    with pytest.raises(DataError, match=r"c\.csv.* changed while .* run again"):
        run_source("test", None, source, options)
    assert run_source("test", None, source, options).num_resumed == 0
    assert "two lines" in (tmp_path / "out" / "train_texts.jsonl").read_text()


def test_start_anew_begins_at_the_first_row(
    folder: Path, run_import: RunImport, encode_picture: Encode, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(DataError, match=r"d\.jpg: not a picture"):
        run_import("folder", "--image-dir", folder)
    (folder / "d.jpg").write_bytes(encode_picture(60))
    (folder / "b.jpg").write_bytes(encode_picture(61))
    require_whole(run_import("folder", "--image-dir", folder, "--start-anew"), folder)
    assert "before the interruption" not in capsys.readouterr().out


def test_mended_pictures_count_after_too_many_were_bad(
    folder: Path, run_import: RunImport, encode_picture: Encode
) -> None:
    words = ("folder", "--image-dir", folder, "--bad-rows", "skip")
    for _ in range(2):
        with pytest.raises(DataError, match="1 of 10 pictures and captions are bad"):
            run_import(*words)
    (folder / "d.jpg").write_bytes(encode_picture(60))
    require_whole(run_import(*words), folder)


def test_much_work_is_not_thrown_away_for_its_bad_rows(
    folder: Path, run_import: RunImport, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("folder", "--image-dir", folder)
    with pytest.raises(DataError, match="1 of 10 pictures and captions are bad"):
        run_import(*words, "--bad-rows", "skip")
    monkeypatch.setattr(run_module, "_WORTH_KEEPING_SECONDS", -1)
    with pytest.raises(
        ConfigError, match="passed over 1 bad rows: give --bad-rows skip to go on .* --start-anew"
    ):
        run_import(*words)
    with pytest.raises(ConfigError, match="1 of 10 .* are bad: give a higher --max-bad-share to go on"):
        run_import(*words, "--bad-rows", "skip")
    assert len(run_import(*words, *SKIP).images()) == 4


def test_a_store_that_cannot_be_reached_costs_no_work(
    run_import: RunImport, encode_picture: Encode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = pytest.importorskip("fsspec").filesystem("memory")
    monkeypatch.setattr("cn_clip.data.tars.samples.PAUSES_SECONDS", ())
    write_tar(tmp_path / "t.tar", {"a": encode_picture(1), "b": b"broken"})
    memory.pipe("/away/0.tar", (tmp_path / "t.tar").read_bytes())
    words = ("webdataset", "--tars", "memory://away/0.tar")
    with pytest.raises(DataError, match=r"0\.tar, b: not a picture"):
        run_import(*words)
    memory.mv("/away/0.tar", "/away/elsewhere")
    with pytest.raises(DataError, match="cannot be read .* run again when it can be read"):
        run_import(*words)
    write_tar(tmp_path / "t.tar", {"a": encode_picture(1), "b": encode_picture(2)})
    memory.pipe("/away/0.tar", (tmp_path / "t.tar").read_bytes())
    assert list(run_import(*words).names()) == ["0/a", "0/b"]


def test_the_id_of_a_picture_that_cannot_be_used_for_a_while(
    folder: Path, run_import: RunImport, encode_picture: Encode
) -> None:
    add(folder, "f.jpg", encode_picture(4))
    (folder / "d.jpg").write_bytes(encode_picture(60))
    before = run_import("folder", "--image-dir", folder).names()
    good = (folder / "f.jpg").read_bytes()
    (folder / "f.jpg").write_bytes(b"broken")  # the highest id
    assert "f.jpg" not in run_import("folder", "--image-dir", folder, *SKIP).names()
    (folder / "f.jpg").write_bytes(good)
    add(folder, "a.jpg", encode_picture(99))
    assert run_import("folder", "--image-dir", folder, *SKIP).names() == {**before, "a.jpg": 5}


def test_the_ids_of_pictures_that_were_held_out_once(
    tmp_path: Path, run_import: RunImport, encode_picture: Encode
) -> None:
    for number in range(30):
        add(tmp_path / "images", f"{number:02}.jpg", encode_picture(number))
    words = ("folder", "--image-dir", tmp_path / "images")
    out = run_import(*words, "--valid-share", "0.3")
    ids = {**out.names("train"), **out.names("valid")}
    assert len(ids) == 30 and out.names("valid")
    assert run_import(*words).names() == ids
    out = run_import(*words, "--valid-share", "0.5")
    assert {**out.names("train"), **out.names("valid")} == ids
    assert run_import(*words, "--split", "all").names("all") == ids


def test_other_pictures_of_the_same_names_in_another_split(
    tmp_path: Path, run_import: RunImport, encode_picture: Encode
) -> None:
    for number in range(4):
        add(tmp_path / "one", f"{number}.jpg", encode_picture(number))
        add(tmp_path / "two", f"{number + 2}.jpg", encode_picture(50 + number))
    one = run_import("folder", "--image-dir", tmp_path / "one").names()
    for _ in range(2):
        out = run_import("folder", "--image-dir", tmp_path / "two", "--split", "valid")
        assert len(set(out.names("valid").values())) == len(out.images("valid")) == 4
        first = out.names("valid")
    remove(tmp_path / "two", "2.jpg")
    assert (
        run_import("folder", "--image-dir", tmp_path / "two", "--split", "valid").names("valid").items()
        < first.items()
    )
    assert run_import("folder", "--image-dir", tmp_path / "one").names() == one


def test_the_id_of_a_name_that_is_not_utf8_and_was_away(
    folder: Path, run_import: RunImport, encode_picture: Encode
) -> None:
    (folder / "d.jpg").write_bytes(encode_picture(60))
    name = b"\xba\xec.jpg".decode("utf-8", "surrogateescape")  # GBK
    add(folder, name, encode_picture(5))
    ids = run_import("folder", "--image-dir", folder).names()
    remove(folder, name)
    out = run_import("folder", "--image-dir", folder)
    assert name not in out.names()
    shown = name.encode("utf-8", "backslashreplace").decode()
    add(folder, name, encode_picture(5))
    add(folder, shown, encode_picture(6))  # another file, whose name looks the same in a terminal
    assert run_import("folder", "--image-dir", folder).names() == {**ids, shown: 6}


def test_two_files_under_one_name_of_a_column(tmp_path: Path, pictures: Path, run_import: RunImport) -> None:
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    columns = {"image": ["0.jpg", "2.jpg"], "caption": ["一", "二"], "key": ["x", "x"]}
    parquet.write_table(pyarrow.table(columns), tmp_path / "a.parquet")
    words = ("--files", tmp_path / "a.parquet", "--name-column", "key", "--image-dir", pictures)
    with pytest.raises(DataError, match="row 2: a picture named 'x' was given before with other content"):
        run_import("parquet", *words)


SLOW = """
import sys, time
from cn_clip.preprocess.importing import outputs, run
if sys.argv[1] == "first":  # is done, but slow to clear up
    clear = outputs.clear
    outputs.clear = lambda work: (print("clearing", flush=True), time.sleep(2), clear(work))
else:
    add = run.RowWriter.add
    run.RowWriter.add = lambda *words: (print("row", flush=True), time.sleep(0.5), add(*words))
from cn_clip.errors import run_door
from cn_clip.preprocess.import_dataset import main
run_door(lambda: main(["folder", *sys.argv[2:]]))
"""


def test_an_import_that_ends_leaves_the_next_one_alone(folder: Path, encode_picture: Encode) -> None:
    (folder / "d.jpg").write_bytes(encode_picture(60))
    out = folder.parent / "out"

    def start(which: str) -> subprocess.Popen[str]:
        words = ("--image-dir", folder, "--output-dir", out, "--split", which, "--workers", "0")
        return subprocess.Popen(
            [sys.executable, "-c", SLOW, which, *map(str, words)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    first = start("first")
    assert first.stdout is not None and first.stdout.readline() == "clearing\n"
    second = start("second")
    _, said = second.communicate(timeout=60)
    first.communicate(timeout=60)
    assert first.returncode == 0
    # one of the two: refused, or done with all of its rows
    if second.returncode == 0:
        assert len((out / "second_imgs.tsv").read_text().splitlines()) == 5
    else:
        assert second.returncode == 2 and "another import writes into" in said, said
    assert list(out.glob(".*")) == []


def test_many_imports_into_one_folder(folder: Path, encode_picture: Encode) -> None:
    """Whoever is let in writes all; who is not says so."""
    (folder / "d.jpg").write_bytes(encode_picture(60))
    out = folder.parent / "out"
    code = "import sys; from cn_clip.errors import run_door; from cn_clip.preprocess.import_dataset import main; run_door(main)"
    processes = []
    for _ in range(6):
        words = [sys.executable, "-c", code, "folder", "--image-dir", folder, "--output-dir", out]
        processes.append(subprocess.Popen(list(map(str, words)), stderr=subprocess.PIPE, text=True))
        time.sleep(0.05)
    said = [process.communicate(timeout=120)[1] for process in processes]
    codes = [process.returncode for process in processes]
    assert set(codes) <= {0, 2} and 0 in codes, said
    assert all("another import writes into" in text for text, code in zip(said, codes, strict=True) if code)
    assert len((out / "train_imgs.tsv").read_text().splitlines()) == 5
    assert list(out.glob(".*")) == []
