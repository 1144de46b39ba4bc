"""Training curves as inline SVG that takes its colours and its font from the page."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence

import matplotlib
from matplotlib.figure import Figure

Points = Sequence[tuple[int, float]]
_INK = "#010203"  # stand-ins that are replaced by colours of the page
_SERIES = ("#040506", "#070809")
_MAX_POINTS = 500


def draw_curve(series: Mapping[str, Points], value_name: str) -> str:
    """SVG of up to two named series over the training step; long ones are averaged down to 500 points."""
    figure = Figure(figsize=(5.2, 3.0), layout="constrained")
    axes = figure.add_subplot()
    for (name, points), colour in zip(series.items(), _SERIES, strict=False):
        steps, values = zip(*_thin(points), strict=True)
        marker = "o" if len(steps) <= 20 else None
        axes.plot(steps, values, color=colour, label=name, linewidth=1.8, marker=marker, markersize=4)
    axes.set_xlabel("step")
    axes.set_ylabel(value_name)
    axes.grid(color=_INK, alpha=0.12, linewidth=0.8)
    axes.spines[["top", "right"]].set_visible(False)
    if len(series) > 1:
        axes.legend(frameon=False, labelcolor=_INK)
    axes.tick_params(color=_INK, labelcolor=_INK)
    for part in (axes.xaxis.label, axes.yaxis.label):
        part.set_color(_INK)
    for side in ("left", "bottom"):
        axes.spines[side].set(color=_INK, alpha=0.4)
    return _inline(figure, f"{value_name} over the training steps")


def _thin(points: Points) -> list[tuple[float, float]]:
    size = -(-len(points) // _MAX_POINTS)
    groups = [points[start : start + size] for start in range(0, len(points), size)]
    return [(sum(s for s, _ in g) / len(g), sum(v for _, v in g) / len(g)) for g in groups]


def _inline(figure: Figure, title: str) -> str:
    stream = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": title}):
        figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = stream.getvalue()
    svg = svg[svg.index("<svg") :]  # without the XML head, which HTML has no place for
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r' (width|height)="[0-9.]+pt"', "", svg, count=2)  # the page sets the size
    svg = svg.replace("<svg ", f'<svg role="img" aria-label="{title}" ', 1)
    svg = svg.replace(_INK, "currentColor")
    for number, colour in enumerate(_SERIES, start=1):
        svg = svg.replace(colour, f"var(--series-{number})")
    return svg
