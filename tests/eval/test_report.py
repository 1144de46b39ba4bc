from __future__ import annotations

import base64
import io
import json
import os
import re
import subprocess
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from PIL import Image

from cn_clip.data.store import SplitWriter
from cn_clip.errors import ConfigError, DataError
from cn_clip.eval import write_report
from cn_clip.eval.features.files import write_features
from cn_clip.eval.report.curve import draw_curve
from cn_clip.eval.report.facts import read_curves, read_stages, read_zeroshot
from cn_clip.eval.report.gallery import read_gallery
from cn_clip.eval.report.page import format_duration
from cn_clip.eval.report.thumbnails import thumbnail

NUM = 12


def picture(colour: tuple[int, int, int]) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (30, 20), colour).save(stream, "PNG")
    return stream.getvalue()


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Twelve pictures and captions: caption i finds picture i first, but for captions 0 and 1, which are swapped."""
    with SplitWriter(tmp_path / "lmdb") as writer:
        for image_id in range(NUM):
            writer.add_image(image_id, picture((image_id * 20, 100, 50)))
        writer.add_pair(0, 0, "字")
    rows = [{"text_id": i, "text": f"第{i}张 <b>&", "image_ids": [i]} for i in range(NUM)]
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    eye = torch.eye(NUM)
    eye[0, 1] = eye[1, 0] = 0.5
    write_features(tmp_path / "i.jsonl", "image_id", [(list(range(NUM)), eye)])
    write_features(tmp_path / "t.jsonl", "text_id", [([1, 0, *range(2, NUM)], eye)])
    return tmp_path


def words(data: Path, *more: str) -> list[str]:
    given = {
        "texts": "texts.jsonl",
        "text-feats": "t.jsonl",
        "image-feats": "i.jsonl",
        "output": "report.html",
    }
    return [*(f"--{flag}={data / name}" for flag, name in given.items()), f"--images={data / 'lmdb'}", *more]


class Page(HTMLParser):
    """Checks that tags are closed in order, and collects pictures and text."""

    VOID = {"meta", "img", "br"}

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.pictures: list[str] = []
        self.words: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "img":
            self.pictures.append(dict(attrs)["src"] or "")
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        pass  # of the SVG

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def test_page_shows_recall_curves_stages_and_pictures_by_itself(
    data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = data / "run"
    run.mkdir()
    rows = [{"kind": "train", "step": s, "epoch": 1, "loss": 5.0 / s, "lr": 1e-3} for s in range(1, 30)]
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (run / "resolved.yaml").write_text("model: {image: quickstart-resnet}\n")
    (data / "zero.txt").write_text("Result:\nzeroshot-top1: 0.4375\n")
    (data / "stages.json").write_text('{"train": 201.4, "search": 2}')
    more = (f"--train-log={run}", f"--zeroshot={data / 'zero.txt'}", f"--stages={data / 'stages.json'}")
    write_report.main(words(data, *more, "--credit=图片 © 作者"))
    text = (data / "report.html").read_text(encoding="utf-8")
    page = Page(text)
    shown = " ".join(" ".join(page.words).split())
    for part in (
        "83.3",
        "43.8",
        "3 min 21 s",
        "model.image quickstart-resnet",
        "图片 © 作者",
        "第3张 <b>&",
        "损失",
    ):
        assert part in shown
    assert len(page.pictures) == NUM * 6
    for address in page.pictures:
        image = Image.open(io.BytesIO(base64.b64decode(address.removeprefix("data:image/webp;base64,"))))
        assert image.size == (30, 20)
    assert not re.search(r"""(src|href)="(?!data:|#)|url\((?!#)|@import""", text)  # nothing from elsewhere
    out = capsys.readouterr().out
    assert re.search(r"text -> image +83\.3 +100\.0 +100\.0 +94\.4", out)
    assert re.search(r"  random order +8\.3 +41\.7 +83\.3", out)
    assert out.endswith(f"The report lies in {data / 'report.html'}\n")


def test_scores_of_the_evaluation_are_shown_as_they_are(
    data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    score = {"success": True, "score": 1.0, "scoreJson": {"r1": 12.5, "r5": 25.0, "r10": 50.0}}
    (data / "score.json").write_text(json.dumps(score))
    write_report.main(words(data, f"--recall-texts={data / 'score.json'}", "--num-queries=0"))
    assert re.search(r"image -> text +12\.5 +25\.0 +50\.0 +29\.2", capsys.readouterr().out)


def test_a_right_picture_far_behind_is_shown_with_its_rank(data: Path) -> None:
    features = torch.eye(NUM)
    features[0] = torch.arange(1.0, NUM + 1)
    write_features(data / "t.jsonl", "text_id", [(list(range(NUM)), features)])
    gallery = read_gallery(data / "texts.jsonl", data / "t.jsonl", data / "i.jsonl")
    (query,) = [query for query in gallery.draw(NUM, 3, seed=0) if query.caption.startswith("第0张")]
    assert query.first_right.rank == NUM
    assert [found.image_id for found in query.found] == [NUM - 1, NUM - 2, NUM - 3]
    write_report.main(words(data, "--num-found=3"))
    assert len(Page((data / "report.html").read_text(encoding="utf-8")).pictures) > NUM * 3


def test_rank_counts_what_the_search_would_put_before(data: Path) -> None:
    """One feature for all pictures: the right one is found at its place in the file."""
    write_features(data / "i.jsonl", "image_id", [(list(range(NUM)), torch.ones(NUM, NUM))])
    gallery = read_gallery(data / "texts.jsonl", data / "t.jsonl", data / "i.jsonl")
    ranks = {
        query.caption[1:].split("张")[0]: query.first_right.rank for query in gallery.draw(NUM, 2, seed=1)
    }
    assert ranks == {str(i): i + 1 for i in range(NUM)}


def test_captions_are_drawn_once_and_by_seed(data: Path) -> None:
    rows = [{"text_id": i, "text": f"{i // 2}", "image_ids": [i]} for i in range(NUM)]
    (data / "texts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    gallery = read_gallery(data / "texts.jsonl", data / "t.jsonl", data / "i.jsonl")
    captions = [query.caption for query in gallery.draw(NUM, 1, seed=0)]
    assert sorted(captions) == [str(i) for i in range(NUM // 2)]
    assert captions == [query.caption for query in gallery.draw(NUM, 1, seed=0)]
    assert captions != [query.caption for query in gallery.draw(NUM, 1, seed=1)]


def test_stage_folder_lists_finished_stages_in_their_order(tmp_path: Path) -> None:
    for place, (name, state) in enumerate(
        [("zeta", "12 9 done 3"), ("alpha", "1 2 done 40"), ("report", "1 2 started")]
    ):
        (tmp_path / name).write_text(state + "\n")
        os.utime(tmp_path / name, (place, place))
    assert list(read_stages(tmp_path).items()) == [("zeta", 3.0), ("alpha", 40.0)]


def test_a_half_written_last_row_of_the_curve_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text(
        '{"kind": "train", "step": 3, "epoch": 1, "loss": 2.5}\n{"kind": "tr'
    )
    assert read_curves(tmp_path) == {"train/loss": [(3, 2.5)]}


def test_bad_sources_are_named(data: Path) -> None:
    (data / "bad.json").write_text('{"success": false, "errorMsg": "row 7"}')
    (data / "bad.txt").write_text("no result")
    for flag, name, complaint in (
        ("recall-images", "bad.json", "failed evaluation"),
        ("recall-texts", "bad.txt", "not JSON"),
        ("zeroshot", "bad.txt", "zeroshot-top1"),
        ("stages", "bad.txt", "not JSON"),
        ("train-log", "nowhere", "cannot read .*metrics.jsonl"),
        ("images", "nowhere", "nowhere"),
        ("texts", "nowhere", "nowhere"),
    ):
        with pytest.raises(DataError, match=complaint):
            write_report.main([*words(data), f"--{flag}={data / name}"])
    with pytest.raises(ConfigError, match="--num-found"):
        write_report.main(words(data, "--num-found=0"))
    assert not (data / "report.html").exists()


def test_features_of_another_split_are_told(data: Path) -> None:
    write_features(data / "i.jsonl", "image_id", [([100, 101], torch.ones(2, NUM))])
    with pytest.raises(DataError, match="of two splits"):
        write_report.main(words(data))


def test_thumbnails_of_every_mode_are_small_and_keep_their_shape() -> None:
    for mode in ("RGB", "RGBA", "L", "LA", "P", "CMYK", "I;16"):
        stream = io.BytesIO()
        Image.new(mode, (400, 200)).save(stream, "TIFF" if mode in ("CMYK", "I;16") else "PNG")
        address = thumbnail(stream.getvalue())
        image = Image.open(io.BytesIO(base64.b64decode(address.split(",")[1])))
        assert image.size == (144, 72)


def test_curves_take_their_colours_from_the_page_and_stay_small() -> None:
    svg = draw_curve(
        {"training": [(s, 1.0 / s) for s in range(1, 5000)], "validation": [(2500, 0.5)]}, "loss"
    )
    assert svg.startswith("<svg ") and svg.rstrip().endswith("</svg>")
    assert "var(--series-1)" in svg and "var(--series-2)" in svg and "currentColor" in svg
    assert len(svg) < 60_000
    assert svg == draw_curve(
        {"training": [(s, 1.0 / s) for s in range(1, 5000)], "validation": [(2500, 0.5)]}, "loss"
    )


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.04, "0.0 s"), (7.25, "7.2 s"), (59.7, "1 min 0 s"), (201.4, "3 min 21 s"), (7300, "2 h 1 min")],
)
def test_durations(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


def test_read_zeroshot_takes_the_last_result(tmp_path: Path) -> None:
    (tmp_path / "z").write_text("zeroshot-top1: 0.1\nzeroshot-top1: 5e-1\n")
    assert read_zeroshot(tmp_path / "z") == 0.5


def test_the_command_runs_by_path(
    data: Path, run_ours: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    done = run_ours("cn_clip/eval/write_report.py", *words(data, "--texts=absent.jsonl"))
    assert done.returncode == 2
    assert (
        done.stderr.startswith("error: ") and "absent.jsonl" in done.stderr and done.stderr.count("\n") == 1
    )
