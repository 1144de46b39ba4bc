"""Histograms as inline SVG that takes its colours and its font from the page."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator

from cn_clip.preprocess.inspection.report import Histogram

_INK, _BAR, _MARK = "#010203", "#040506", "#070809"  # stand-ins that are replaced by colours of the page
_COLOURS = {_INK: "currentColor", _BAR: "var(--series-1)", _MARK: "var(--series-2)"}


def draw_histogram(
    histogram: Histogram, unit: str, *, is_log: bool = False, marks: Sequence[float] = ()
) -> str:
    """SVG of bars over `unit`; each mark is a line across with its number."""
    figure = Figure(figsize=(5.2, 2.5), layout="constrained")
    axes = figure.add_subplot()
    edges = histogram.edges
    axes.bar(
        edges[:-1],
        histogram.counts,
        [b - a for a, b in zip(edges[:-1], edges[1:], strict=True)],
        align="edge",
        color=_BAR,
        linewidth=0,
    )
    if is_log:
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(
            LogLocator(10, (1, 2, 5), numticks=20) if edges[-1] / edges[0] > 3 else MaxNLocator(5)
        )
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_minor_formatter(NullFormatter())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _shown(value)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: _shown(value)))
    axes.yaxis.set_major_locator(MaxNLocator(4, integer=True))
    _draw_marks(axes, [mark for mark in marks if edges[0] < mark < edges[-1]])
    axes.set_xlabel(unit, color=_INK)
    axes.grid(axis="y", color=_INK, alpha=0.12, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set(color=_INK, alpha=0.4)
    axes.tick_params(color=_INK, labelcolor=_INK, length=3)
    return _inline(figure, f"histogram over {unit}")


def _draw_marks(axes: Axes, marks: Sequence[float]) -> None:
    free = -1.0
    for mark in marks:
        axes.axvline(mark, color=_MARK, linewidth=1.2, linestyle=(0, (4, 3)))
        place = axes.transAxes.inverted().transform(axes.transData.transform((mark, 0)))[0]
        # numbers that would run into each other stay away; the table has them
        if place >= free:
            free = place + 0.02 + 0.02 * len(f"{mark:g}")
            axes.annotate(
                f"{mark:g}",
                (mark, 1),
                (3, 1),
                xycoords=("data", "axes fraction"),
                textcoords="offset points",
                color=_MARK,
            )


def _shown(value: float) -> str:
    """`1.5k`, `20M`, `0.5`."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:g}{unit}"
    return f"{value:g}"


def _inline(figure: Figure, title: str) -> str:
    stream = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": title}):
        figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = stream.getvalue()
    # without the XML head, which HTML has no place for
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    # the page sets the size
    svg = re.sub(r' (width|height)="[0-9.]+pt"', "", svg, count=2)
    # ids would meet those of the other plots of the page
    svg = re.sub(r' id="(?!p[0-9a-f]{10})[^"]*"', "", svg)
    svg = svg.replace("<svg ", f'<svg role="img" aria-label="{title}" ', 1)
    for stand_in, colour in _COLOURS.items():
        svg = svg.replace(stand_in, colour)
    return svg
