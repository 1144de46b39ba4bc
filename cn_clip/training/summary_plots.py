"""Plots of a run as PNG files, one for each group of curves that the run has."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.figure import Figure

from cn_clip.files import write_atomically
from cn_clip.training.run_numbers import Curve, RunNumbers

MAX_POINTS = 500
"""Of a line: more are averaged down."""


@dataclass(frozen=True)
class Plot:
    """Curves that share an axis."""

    file: str
    title: str
    unit: str
    curves: dict[str, Curve]
    """Name in the legend -> curve."""
    is_logarithmic: bool = False


def draw_plots(numbers: RunNumbers, folder: Path) -> list[Plot]:
    """Write `folder/{file}` of each plot that has a curve."""
    plots = [plot for plot in _plots(numbers) if plot.curves]
    if plots:
        folder.mkdir(exist_ok=True)
    for plot in plots:
        write_atomically(folder / plot.file, _png(_drawn(plot)))
    return plots


def _plots(numbers: RunNumbers) -> list[Plot]:
    sets = numbers.valid_sets
    losses = {"train/loss": "training"} | {_of(name, "loss"): _shown(name, "validation") for name in sets}
    recalls = {}
    for name in sets:
        recalls[_of(name, "text_to_image_mean_recall")] = _shown(name, "text to image")
        recalls[_of(name, "image_to_text_mean_recall")] = _shown(name, "image to text")
    plots = [
        _plot(numbers, "loss.png", "Loss", "nats", losses),
        _plot(numbers, "recall.png", "Mean recall", "share of queries", recalls),
        _plot(numbers, "learning_rate.png", "Learning rate", "", {"train/lr": "learning rate"}),
        _plot(
            numbers,
            "throughput.png",
            "Throughput",
            "pairs per second",
            {"train/pairs_per_second": "pairs per second"},
        ),
        _plot(
            numbers,
            "gradient_norm.png",
            "Norm of the gradients",
            "",
            {"train/gradient_norm": "before clipping"},
            is_logarithmic=True,
        ),
        _plot(
            numbers,
            "logit_scale.png",
            "Logit scale",
            "log of the factor",
            {"train/logit_scale": "logit_scale"},
        ),
    ]
    return plots + _diagnostic_plots(numbers)


def _diagnostic_plots(numbers: RunNumbers) -> list[Plot]:
    """One for each further number of the train rows: what a loss tells of its batches."""
    drawn = {"loss", "lr", "pairs_per_second", "gradient_norm", "logit_scale"}
    dull = {"elapsed_seconds", "peak_memory_mib", "data_seconds", "step_seconds", "skipped_steps"}
    names = [name.removeprefix("train/") for name in numbers.curves if name.startswith("train/")]
    return [
        _plot(numbers, f"{name}.png", name.replace("_", " ").capitalize(), "", {f"train/{name}": name})
        for name in names
        if name not in drawn | dull and "/" not in name
    ]


def _of(set_name: str, number: str) -> str:
    return f"valid/{set_name}/{number}" if set_name else f"valid/{number}"


def _shown(set_name: str, what: str) -> str:
    return f"{what}, {set_name}" if set_name else what


def _plot(
    numbers: RunNumbers,
    file: str,
    title: str,
    unit: str,
    names: dict[str, str],
    *,
    is_logarithmic: bool = False,
) -> Plot:
    curves = {shown: numbers.curves[name] for name, shown in names.items() if name in numbers.curves}
    return Plot(file, title, unit, curves, is_logarithmic)


def _drawn(plot: Plot) -> Figure:
    figure = Figure(figsize=(7.0, 3.4), dpi=110, layout="constrained")
    axes = figure.add_subplot()
    for shown, curve in plot.curves.items():
        thin = curve.thinned(MAX_POINTS)
        axes.plot(
            thin.steps, thin.values, label=shown, linewidth=1.5, marker=_marker(thin.steps), markersize=4
        )
    axes.set_title(plot.title, loc="left", fontsize=11)
    axes.set_xlabel("step")
    axes.set_ylabel(plot.unit)
    if plot.is_logarithmic and all(min(curve.values) > 0 for curve in plot.curves.values()):
        axes.set_yscale("log")
    axes.grid(alpha=0.25, linewidth=0.8)
    axes.spines[["top", "right"]].set_visible(False)
    if len(plot.curves) > 1:
        axes.legend(frameon=False, fontsize=9)
    return figure


def _png(figure: Figure) -> bytes:
    stream = io.BytesIO()
    figure.savefig(stream, format="png")
    return stream.getvalue()


def _marker(steps: Sequence[int]) -> str | None:
    # a few points would be a line that hides where they are, one of them none at all
    return "o" if len(steps) <= 20 else None
