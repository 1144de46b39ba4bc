"""Ids that stay, splits that do not share a picture, and pictures made smaller."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from cn_clip.errors import ConfigError, DataError
from cn_clip.preprocess.importing import run as run_module
from cn_clip.preprocess.importing.pictures import shrink
from cn_clip.preprocess.importing.progress import Progress
from cn_clip.preprocess.importing.split_choice import SplitChoice

RunImport = Callable[..., Any]
Encode = Callable[..., bytes]


@pytest.fixture
def many(tmp_path: Path, encode_picture: Encode) -> Path:
    """Sixty pictures in ten folders, each with its caption beside it."""
    for number in range(60):
        add(tmp_path / "images", f"item{number // 6}/{number:02d}.jpg", encode_picture(number))
    return tmp_path / "images"


def add(folder: Path, name: str, picture: bytes) -> None:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(picture)
    path.with_suffix(".txt").write_text(f"说明 {name}", encoding="utf-8")


def test_the_same_input_gives_the_same_files(many: Path, run_import: RunImport) -> None:
    words = ("folder", "--image-dir", many, "--valid-share", "0.2")
    first = run_import(*words, "--workers", "0").content()
    for path in run_import(*words).folder.iterdir():
        path.unlink()
    assert run_import(*words, "--workers", "3").content() == first
    assert run_import(*words).content() == first


def test_more_pictures_leave_the_old_ids_and_splits_alone(
    many: Path, run_import: RunImport, encode_picture: Encode
) -> None:
    words = ("folder", "--image-dir", many, "--valid-share", "0.2")
    before = run_import(*words)
    old = {split: before.names(split) for split in ("train", "valid")}
    assert sorted([*old["train"].values(), *old["valid"].values()]) == list(range(60))
    for number in range(30):
        add(many, f"a{number}/{number}.jpg", encode_picture(100 + number))  # comes before the old ones
    after = run_import(*words)
    new = {split: after.names(split) for split in ("train", "valid")}
    for split in old:
        assert old[split].items() <= new[split].items()
        assert {name: after.by_name(split)[name] for name in old[split]}
    assert sorted([*new["train"].values(), *new["valid"].values()]) == list(range(90))


def test_an_id_is_never_given_to_another_picture(
    many: Path, run_import: RunImport, encode_picture: Encode
) -> None:
    words = ("folder", "--image-dir", many)
    before = run_import(*words).names()
    gone = many / "item9" / "59.jpg"  # the highest id
    content = gone.read_bytes()
    gone.unlink()
    add(many, "new.jpg", encode_picture(77))
    out = run_import(*words)
    assert out.names()["new.jpg"] == 60 and "item9/59.jpg" not in out.names()
    assert set(out.images()) == set(out.names().values())
    gone.write_bytes(content)
    assert run_import(*words).names() == {**before, "new.jpg": 60}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", r"train_names\.jsonl row 61: cannot be read"),
        ('{"image_id": "7", "name": "x"}', r"row 61: give"),
        ('{"image_id": 7, "name": "x"}', r"give two pictures the id 7"),
        (
            '{"image_id": 700, "name": "item0/00.jpg"}',
            r"row 61: 'item0/00.jpg' has the id 700, but was given 0",
        ),
    ],
)
def test_a_map_that_cannot_be(many: Path, run_import: RunImport, line: str, message: str) -> None:
    out = run_import("folder", "--image-dir", many)
    before = out.content()
    with (out.folder / "train_names.jsonl").open("a") as file:
        file.write(f"{line}\n")
    with pytest.raises(DataError, match=message):
        run_import("folder", "--image-dir", many)
    assert out.content()["train_imgs.tsv"] == before["train_imgs.tsv"]


@pytest.mark.parametrize("split_by", ["name", "content", "folder"])
def test_no_picture_is_in_both_splits(
    many: Path, run_import: RunImport, encode_picture: Encode, split_by: str
) -> None:
    for number in range(60):
        add(many, f"copies/{number:02d}.jpg", encode_picture(number))
    out = run_import("folder", "--image-dir", many, "--valid-share", "0.3", "--split-by", split_by)
    names = {split: set(out.names(split)) for split in ("train", "valid")}
    assert not names["train"] & names["valid"] and len(names["train"] | names["valid"]) == 120
    assert 10 <= len(names["valid"]) <= 70
    captions = {split: {text for _, text, _ in out.texts(split)} for split in names}
    assert captions == {split: {f"说明 {name}" for name in names[split]} for split in names}
    if split_by == "content":
        pictures = {split: set(out.images(split).values()) for split in names}
        assert not pictures["train"] & pictures["valid"]
    if split_by == "folder":
        folders = {split: {name.split("/")[0] for name in names[split]} for split in names}
        assert not folders["train"] & folders["valid"]
    out.check_store("train", "valid")


def test_a_larger_share_only_adds_to_the_held_out() -> None:
    names = [f"{number}.jpg" for number in range(5000)]
    held_out = {
        share: {name for name in names if SplitChoice(valid_share=share).of(name, b"") == "valid"}
        for share in (0.05, 0.1)
    }
    assert held_out[0.05] < held_out[0.1]
    assert 0.04 < len(held_out[0.05]) / 5000 < 0.06


def test_a_share_that_holds_out_nothing(pictures: Path, tmp_path: Path, run_import: RunImport) -> None:
    (tmp_path / "c.csv").write_text("image,caption\n0.jpg,a\n")
    words = ("folder", "--image-dir", pictures, "--captions", tmp_path / "c.csv", "--valid-share", "0.01")
    with pytest.raises(
        DataError, match="the split valid would have no picture: hold out a larger --valid-share"
    ):
        run_import(*words)


def test_a_share_that_holds_out_everything(pictures: Path, tmp_path: Path, run_import: RunImport) -> None:
    (tmp_path / "c.csv").write_text("image,caption\n0.jpg,a\n")
    words = ("folder", "--image-dir", pictures, "--captions", tmp_path / "c.csv", "--valid-share", "0.999")
    with pytest.raises(
        DataError, match="the split train would have no picture: hold out a smaller --valid-share"
    ):
        run_import(*words)


def test_an_empty_split_without_a_share(pictures: Path, tmp_path: Path, run_import: RunImport) -> None:
    (tmp_path / "c.csv").write_text("image,caption\n")
    words = ("folder", "--image-dir", pictures, "--captions", tmp_path / "c.csv")
    with pytest.raises(DataError, match="the split train would have no picture: check the input$"):
        run_import(*words)


def test_what_was_held_out_and_comes_back(
    many: Path, run_import: RunImport, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("folder", "--image-dir", many)
    held_out = run_import(*words, "--valid-share", "0.2").names("valid")
    assert "valid_names.jsonl" not in capsys.readouterr().out
    assert len(run_import(*words).images()) == 60
    printed = capsys.readouterr().out
    assert f"names that valid_names.jsonl of an earlier import has too: {len(held_out)} (" in printed
    assert "give --valid-share again, or delete the files of valid" in printed
    run_import(*words, "--valid-share", "0.2")
    assert "valid_names.jsonl" not in capsys.readouterr().out


def test_a_broken_picture_of_a_split_that_is_not_written(
    many: Path, run_import: RunImport, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("folder", "--image-dir", many)
    held_out = run_import(*words, "--valid-share", "0.2").names("valid")
    (many / next(iter(held_out))).write_bytes(b"broken")
    assert len(run_import(*words, "--bad-rows", "skip", "--max-bad-share", "0.1").images()) == 59
    assert f"has too: {len(held_out) - 1} (" in capsys.readouterr().out


def test_what_is_no_longer_held_out_is_not_remarked(
    many: Path, run_import: RunImport, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("folder", "--image-dir", many)
    for name in run_import(*words, "--valid-share", "0.2").names("valid"):
        (many / name).rename(many / f"{name}.away")
    add(many, "new.jpg", saved(photo((12, 8)), "JPEG"))
    run_import(*words, "--split", "valid")
    for path in [*many.rglob("*.away")]:
        path.rename(path.with_suffix(""))
    capsys.readouterr()
    rows = (many.parent / "out" / "valid_names.jsonl").read_text().splitlines()
    removed = [json.loads(row)["name"] for row in rows if "removed" in row]
    assert removed
    keep = many.parent / "again"
    add(keep, removed[0], (many / removed[0]).read_bytes())
    run_import("folder", "--image-dir", keep)
    assert "valid_names.jsonl" not in capsys.readouterr().out


def test_straight_to_lmdb(many: Path, run_import: RunImport) -> None:
    as_tsv = run_import("folder", "--image-dir", many, "--valid-share", "0.2")
    images = {split: as_tsv.images(split) for split in ("train", "valid")}
    for path in as_tsv.folder.iterdir():
        path.unlink()
    out = run_import("folder", "--image-dir", many, "--valid-share", "0.2", "--to", "lmdb")
    assert sorted(path.name for path in out.folder.iterdir()) == [
        "lmdb",
        *(f"{split}_{what}.jsonl" for split in ("train", "valid") for what in ("names", "texts")),
    ]
    for split in images:
        out.check_built(split, images[split])


def test_a_tsv_that_would_no_longer_fit(many: Path, run_import: RunImport) -> None:
    run_import("folder", "--image-dir", many)
    with pytest.raises(ConfigError, match=r"train_imgs\.tsv is of another import"):
        run_import("folder", "--image-dir", many, "--to", "lmdb")


def photo(size: tuple[int, int], mode: str = "RGB") -> Image.Image:
    return Image.radial_gradient("L").resize(size).convert(mode)


def saved(image: Image.Image, format: str) -> bytes:
    stream = io.BytesIO()
    image.save(stream, format)
    return stream.getvalue()


def test_large_pictures_are_made_smaller_and_others_left_alone(tmp_path: Path, run_import: RunImport) -> None:
    sizes = {"large.jpg": (1200, 900), "tall.png": (30, 601), "fits.jpg": (300, 200), "edge.png": (300, 300)}
    for name, size in sizes.items():
        add(tmp_path / "images", name, saved(photo(size), "PNG" if name.endswith("png") else "JPEG"))
    out = run_import("folder", "--image-dir", tmp_path / "images", "--max-px", "300").by_name()
    found = {name: Image.open(io.BytesIO(picture)) for name, (picture, _) in out.items()}
    assert {name: image.size for name, image in found.items()} == {
        "large.jpg": (300, 225),
        "tall.png": (15, 300),
        "fits.jpg": (300, 200),
        "edge.png": (300, 300),
    }
    for name in ("fits.jpg", "edge.png"):
        assert out[name][0] == (tmp_path / "images" / name).read_bytes()
    exact = photo((1200, 900), "L").resize((300, 225), Image.Resampling.BICUBIC)
    difference = [
        abs(a - b) for a, b in zip(found["large.jpg"].convert("L").tobytes(), exact.tobytes(), strict=True)
    ]
    assert max(difference) <= 8 and sum(difference) / len(difference) < 1


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "YCbCr", "LAB", "I", "F", "I;16"])
def test_every_mode_can_be_made_smaller(mode: str) -> None:
    image = photo((90, 60), "L")
    image = Image.new(mode, (90, 60)) if mode in ("LAB", "I;16") else image.convert(mode)
    small = Image.open(io.BytesIO(shrink(saved(image, "TIFF"), 30)))
    assert (small.size, small.mode, small.format) == ((30, 20), "RGB", "JPEG")


def test_a_damaged_picture_that_would_be_made_smaller(tmp_path: Path, run_import: RunImport) -> None:
    picture = bytearray(saved(photo((400, 400)), "PNG"))
    picture[len(picture) // 2] ^= 0xFF  # both ends are whole
    add(tmp_path / "images", "a.png", bytes(picture))
    with pytest.raises(DataError, match=r"a\.png: the picture cannot be decoded"):
        run_import("folder", "--image-dir", tmp_path / "images", "--max-px", "100")


def test_an_unfinished_import_goes_on_after_the_picture_is_mended(
    many: Path, run_import: RunImport, capsys: pytest.CaptureFixture[str]
) -> None:
    good = run_import("folder", "--image-dir", many).content()
    for path in (many.parent / "out").iterdir():
        path.unlink()
    broken = many / "item7" / "45.jpg"
    picture = broken.read_bytes()
    broken.write_bytes(b"")
    with pytest.raises(DataError, match=r"45\.jpg: it is empty; mend it and run again"):
        run_import("folder", "--image-dir", many)
    broken.write_bytes(picture)
    capsys.readouterr()
    assert run_import("folder", "--image-dir", many).content() == good
    assert "rows read before the interruption: 90" in capsys.readouterr().out


def test_work_of_other_settings_is_not_thrown_away_unasked(
    many: Path, run_import: RunImport, monkeypatch: pytest.MonkeyPatch
) -> None:
    (many / "item7" / "45.jpg").write_bytes(b"")
    words = ("folder", "--image-dir", many)
    with pytest.raises(DataError, match="it is empty"):
        run_import(*words)
    monkeypatch.setattr(run_module, "_WORTH_KEEPING_SECONDS", -1)
    with pytest.raises(ConfigError, match="holds an unfinished import of other settings .* --start-anew"):
        run_import(*words, "--split", "all")
    (many / "item7" / "45.jpg").unlink()
    out = run_import(*words, "--split", "all", "--start-anew")
    assert len(out.images("all")) == 59


def test_two_imports_into_one_folder(many: Path, tmp_path: Path, run_import: RunImport) -> None:
    work = tmp_path / "out" / ".importing"
    work.mkdir(parents=True)
    with Progress(work / "progress.sqlite") as other:
        other.start("another")
        with pytest.raises(DataError, match="another import writes into"):
            run_import("folder", "--image-dir", many)
        assert (work / "progress.sqlite").exists()
    assert len(run_import("folder", "--image-dir", many).images()) == 60


def test_names_that_are_numbers(tmp_path: Path, pictures: Path, run_import: RunImport) -> None:
    for number in range(3):
        (pictures / str(number)).write_bytes((pictures / "0.jpg").read_bytes())
    words = ("folder", "--image-dir", pictures, "--captions", tmp_path / "c.csv")
    (tmp_path / "c.csv").write_text("image,caption\n0,a\n1,b\n")
    assert run_import(*words).names() == {"0": 0, "1": 1}  # by chance the same
    (tmp_path / "c.csv").write_text("image,caption\n2,c\n0,a\n1,b\n")
    assert run_import(*words).names() == {"2": 2, "0": 0, "1": 1}


def test_names_that_are_not_utf8(many: Path, run_import: RunImport, encode_picture: Encode) -> None:
    name = b"\xba\xec.jpg"  # GBK
    (Path(str(many)) / name.decode("utf-8", "surrogateescape")).write_bytes(encode_picture(5))
    (Path(str(many)) / name.decode("utf-8", "surrogateescape")).with_suffix(".txt").write_text(
        "红", encoding="utf-8"
    )
    first = run_import("folder", "--image-dir", many)
    ids = first.names()
    assert len(ids) == 61 and ids["\udcba\udcec.jpg"] in first.images()
    assert run_import("folder", "--image-dir", many).names() == ids


def test_progress_that_is_no_database(many: Path, tmp_path: Path, run_import: RunImport) -> None:
    (tmp_path / "out" / ".importing").mkdir(parents=True)
    (tmp_path / "out" / ".importing" / "progress.sqlite").write_bytes(b"no database, but long enough" * 9)
    with pytest.raises(DataError, match="cannot be used .* delete the folder"):
        run_import("folder", "--image-dir", many)


def test_rows_of_the_map_are_json(many: Path, run_import: RunImport) -> None:
    out = run_import("folder", "--image-dir", many)
    assert json.loads((out.folder / "train_names.jsonl").read_text().splitlines()[0]) == {
        "image_id": 0,
        "name": "item0/00.jpg",
    }
