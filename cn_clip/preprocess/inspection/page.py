"""The report as one self-contained HTML page."""

from __future__ import annotations

import base64
import io
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import jinja2
from markupsafe import Markup

from cn_clip.clip.transform import open_picture
from cn_clip.errors import DataError
from cn_clip.preprocess.inspection.advice import percent, size
from cn_clip.preprocess.inspection.findings import SMALL_PX
from cn_clip.preprocess.inspection.plots import draw_histogram
from cn_clip.preprocess.inspection.report import InspectionReport, SplitInspection
from cn_clip.preprocess.splits.picture_check import find_fault

_TEMPLATE = Path(__file__).with_name("page.html.jinja")
_THUMBNAIL_PX = 160
_FAULTS_SHOWN = 50

ReadPicture = Callable[[str, int], bytes | None]
"""(path of a split, image id) -> the encoded picture, or None where it cannot be read."""


@dataclass(frozen=True)
class _Chart:
    chinese: str
    english: str
    svg: Markup


def render(report: InspectionReport, read_picture: ReadPicture) -> str:
    """HTML of the page; whatever the data hold is escaped."""
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"percent": percent, "size": size, "number": _number}

    @cache
    def thumbnail(path: str, image_id: int) -> str | None:
        picture = read_picture(path, image_id)
        return None if picture is None else shrink(picture)

    template = environment.from_string(_TEMPLATE.read_text(encoding="utf-8"))
    return template.render(
        report=report,
        thumbnail=thumbnail,
        caption_charts=_caption_charts,
        picture_charts=_picture_charts,
        faults_shown=_FAULTS_SHOWN,
        date=time.strftime("%Y-%m-%d %H:%M"),
    )


def shrink(picture: bytes) -> str | None:
    """`data:` address of a small copy of its shape, or None for damaged bytes."""
    if find_fault(picture) is not None:
        # first, since PIL would run another program for some formats
        return None
    try:
        image = open_picture(picture)
    except DataError:
        return None
    if image.mode not in ("RGB", "RGBA"):
        image = image.convert("RGBA" if "transparency" in image.info or image.mode == "LA" else "RGB")
    image.thumbnail((_THUMBNAIL_PX, _THUMBNAIL_PX))
    stream = io.BytesIO()
    image.save(stream, "WEBP", quality=80)
    return "data:image/webp;base64," + base64.b64encode(stream.getvalue()).decode("ascii")


def _caption_charts(split: SplitInspection) -> list[_Chart]:
    histogram = split.captions.tokens_histogram
    if histogram is None:
        return []
    lengths = [cut.context_length for cut in split.captions.cuts]
    return [
        _Chart("文本长度", "Tokens of a caption", Markup(draw_histogram(histogram, "tokens", marks=lengths)))
    ]


def _picture_charts(split: SplitInspection) -> list[_Chart]:
    pictures = split.pictures
    charts = []
    for chinese, english, histogram, unit, marks in (
        ("短边", "Shorter side", pictures.shorter_histogram, "px", (SMALL_PX,)),
        ("宽高比", "Width / height", pictures.aspect_histogram, "width / height", (1,)),
        ("文件大小", "File size", pictures.bytes_histogram, "bytes", ()),
    ):
        if histogram is not None:
            svg = draw_histogram(histogram, unit, is_log=True, marks=marks)
            charts.append(_Chart(chinese, english, Markup(svg)))  # our own SVG
    return charts


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 or value == int(value) else f"{value:.3g}"
