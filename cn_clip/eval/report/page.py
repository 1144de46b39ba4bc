"""The report: facts in, one self-contained HTML page out."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import jinja2
from markupsafe import Markup

from cn_clip import __version__
from cn_clip.eval.report.curve import Points, draw_curve
from cn_clip.eval.report.facts import Curves, Recalls
from cn_clip.eval.report.gallery import Query

_TEMPLATE = Path(__file__).with_name("page.html.jinja")


@dataclass(frozen=True, kw_only=True)
class Report:
    """All that a page shows; what is None or empty is left out."""

    title: str
    recalls: tuple[Recalls, Recalls]
    """Text to image, image to text."""
    chances: tuple[Recalls, Recalls]
    """Of random rankings, likewise."""
    num_captions: int
    num_pictures: int
    queries: list[Query]
    thumbnail: Callable[[int], str]
    """Address of the picture with an id."""
    zeroshot: float | None = None
    """Share of pictures classified rightly."""
    stages: Mapping[str, float] = field(default_factory=dict)
    """Seconds of each."""
    curves: Curves = field(default_factory=dict)
    settings: Mapping[str, str] = field(default_factory=dict)
    """A few settings of the run worth knowing, by name."""
    credit: str = ""
    """Whose pictures these are."""


def render(report: Report) -> str:
    """HTML of the page."""
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["percent"] = format_percent
    environment.filters["duration"] = format_duration
    template = environment.from_string(_TEMPLATE.read_text(encoding="utf-8"))
    return template.render(
        report=report,
        directions=list(
            zip(
                ("文搜图", "图搜文"),
                ("text → image", "image → text"),
                report.recalls,
                report.chances,
                strict=True,
            )
        ),
        longest=max(report.stages.values(), default=0),
        total=sum(report.stages.values()),
        charts=_charts(report.curves),
        version=__version__,
        date=time.strftime("%Y-%m-%d %H:%M"),
    )


def format_percent(share: float) -> str:
    """0.1234 -> `12.3`."""
    return f"{share * 100:.1f}"


def format_duration(seconds: float) -> str:
    """201.4 -> `3 min 21 s`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{seconds:.1f} s" if seconds < 10 else f"{rest} s"


def _charts(curves: Curves) -> list[tuple[str, str, Markup]]:
    """(Chinese name, English name, SVG) of each curve there is."""
    charts = []
    for name, chinese, english in (
        ("loss", "损失", "Loss"),
        ("text_to_image_accuracy", "批内文搜图准确率", "In-batch text → image accuracy"),
    ):
        series: dict[str, Points] = {
            label: curves[f"{kind}/{name}"]
            for kind, label in (("train", "training"), ("valid", "validation"))
            if curves.get(f"{kind}/{name}")
        }
        if series:
            value_name = "loss" if name == "loss" else "accuracy"
            charts.append((chinese, english, Markup(draw_curve(series, value_name))))  # our own SVG
    return charts
