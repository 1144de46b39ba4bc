from __future__ import annotations

import base64
import io
import os
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import EpsImagePlugin, Image

from cn_clip.preprocess.inspection.collect import Options, inspect_data
from cn_clip.preprocess.inspection.page import render, shrink
from cn_clip.preprocess.inspection.plots import draw_histogram
from cn_clip.preprocess.inspection.report import Histogram


class Page(HTMLParser):
    """Checks that tags are closed in order; collects pictures, text and tags."""

    VOID = {"meta", "img", "br"}

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.pictures: dict[str, str] = {}
        self.words: list[str] = []
        self.feed(text)
        assert self.open == []
        self.shown = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag == "img":
            self.pictures[dict(attrs)["alt"] or ""] = dict(attrs)["src"] or ""
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        pass  # of the SVG

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)


@pytest.fixture
def data(photo: Callable[..., bytes], write_tables: Callable[..., Path]) -> Path:
    pictures = {image_id: photo(image_id) for image_id in range(30)} | {
        30: photo(3),
        31: photo(4, (99, 99), "PNG"),
    }
    captions = [(image_id, f"第 {image_id} 张", [image_id]) for image_id in range(32)]
    captions += [
        (50, '<script>alert("坏")</script> & \x1b[2J ☃', [2]),
        (51, "第 9 张", [10]),
        (52, "半个\ud83d字", [11]),
    ]
    write_tables("valid", {1: photo(5), 2: photo(200)}, [(1, "第 5 张", [1])])
    return write_tables("train", pictures | {40: b"no picture"}, captions)


def test_the_page_shows_what_was_found_and_nothing_of_it_runs(data: Path) -> None:
    report, pictures = inspect_data(data, Options(against=Path("valid"), batches=(4, 16), num_examples=8))
    text = render(report, pictures.read)
    page = Page(text)
    assert "script" not in page.tags
    for part in (
        '<script>alert("坏")</script> & \\u001b[2J ☃',
        "半个\\ud83d字",
        "train_imgs.tsv row 33, picture 40",
        "not a picture of a known format",
        "Equal pictures, under several ids · 1",
        "Near pictures · 1",
        "Equal captions · 1",
        "Shared with valid",
        "data.context_length",
        "U+2603 SNOWMAN",
    ):
        assert part in page.shown, part
    # plots of captions and pictures, of both splits
    assert page.tags.count("svg") == 8
    for image_id in (3, 30, 4, 31, 9, 10, 5, *(one.image_id for one in report.splits[0].examples)):
        address = page.pictures[f"picture {image_id}"]
        image = Image.open(io.BytesIO(base64.b64decode(address.removeprefix("data:image/webp;base64,"))))
        assert max(image.size) <= 160
    # nothing from elsewhere
    assert not re.search(r"""(src|href)="(?!data:|#)|url\((?!#)|@import""", text)
    ids = re.findall(r' id="([^"]+)"', text)
    assert {one for one in ids if ids.count(one) > 1} <= set(re.findall(r"url\(#([^)]+)\)", text))


def test_a_report_of_next_to_nothing_has_a_page(
    photo: Callable[..., bytes], write_tables: Callable[..., Path]
) -> None:
    for pictures, captions in (({1: photo(1)}, []), ({}, [(1, "一", [5])]), ({1: b"junk"}, [(1, "", [1])])):
        report, reader = inspect_data(write_tables("train", pictures, captions), Options())
        assert "train" in Page(render(report, reader.read)).shown


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA", "P", "L", "CMYK", "1", "I;16", "F"])
def test_thumbnails_of_every_mode(mode: str) -> None:
    stream = io.BytesIO()
    image = (
        Image.new(mode, (300, 100)) if mode in ("I;16", "F") else Image.new("RGBA", (300, 100)).convert(mode)
    )
    image.save(stream, "TIFF")
    address = shrink(stream.getvalue())
    assert address is not None and address.startswith("data:image/webp;base64,")
    assert shrink(b"junk") is None


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n(hello) print\nshowpage\n%%EOF\n"


def test_no_program_is_run_for_a_picture_that_is_one(
    photo: Callable[..., bytes],
    write_tables: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    programs = tmp_path / "programs"
    programs.mkdir()
    (programs / "gs").write_text(f"#!/bin/sh\necho called >> {tmp_path / 'called'}\nexit 1\n")
    (programs / "gs").chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    monkeypatch.setattr(EpsImagePlugin, "gs_binary", None)
    data = write_tables("train", {1: EPS, 2: photo(2)}, [(1, "程序", [1]), (2, "图", [2])])
    report, reader = inspect_data(data, Options())
    assert "EPS" in report.splits[0].pictures.undecodable.examples[0].reason
    assert "train" in Page(render(report, reader.read)).shown
    assert shrink(EPS) is None
    assert not (tmp_path / "called").exists()


def test_a_histogram_draws_every_bar_and_the_marks_it_holds() -> None:
    svg = draw_histogram(Histogram(edges=(0.5, 1.5, 2.5, 3.5), counts=(3, 0, 7)), "tokens", marks=[2, 99])
    assert "var(--series-1)" in svg and "currentColor" in svg and "#0" not in svg
    assert ">2</text>" in svg and ">99</text>" not in svg
    one = draw_histogram(Histogram(edges=(90.0, 110.0), counts=(5,)), "px", is_log=True)
    assert "<svg" in one


@pytest.mark.parametrize("kind", ["lmdb", "tables"])
def test_pictures_are_found_again_whatever_their_order(
    kind: str, photo: Callable[..., bytes], write_lmdb: Callable[..., Path], write_tables: Callable[..., Path]
) -> None:
    pictures = {image_id: photo(abs(image_id), (90, 80)) for image_id in (5, 100, 12, 9, -3, 20)}
    captions = [(image_id, f"{image_id}", [image_id]) for image_id in pictures]
    data = (
        write_lmdb("train", pictures, captions)
        if kind == "lmdb"
        else write_tables("train", pictures, captions)
    )
    report, reader = inspect_data(data, Options())
    path = report.splits[0].path
    assert {image_id: reader.read(path, image_id) for image_id in pictures} == pictures
    assert reader.read(path, 6) is None
