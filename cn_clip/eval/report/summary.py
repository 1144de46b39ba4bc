"""The report's numbers as lines for a terminal."""

from __future__ import annotations

from cn_clip.eval.report.facts import Recalls
from cn_clip.eval.report.page import Report, format_duration, format_percent


def summarize(report: Report) -> str:
    """Recall table in percent, zero-shot result and stage times."""
    lines = [f"{'recall, %':24}{'R@1':>7}{'R@5':>7}{'R@10':>7}{'mean':>7}"]
    for name, recalls, chances in zip(
        ("text -> image", "image -> text"), report.recalls, report.chances, strict=True
    ):
        lines += [_row(name, recalls), _row("  random order", chances)]
    if report.zeroshot is not None:
        lines.append(f"{'zero-shot top-1, %':24}{format_percent(report.zeroshot):>7}")
    if report.stages:
        times = ", ".join(f"{name} {format_duration(seconds)}" for name, seconds in report.stages.items())
        lines.append(f"stages: {times}; total {format_duration(sum(report.stages.values()))}")
    return "\n".join(lines)


def _row(name: str, recalls: Recalls) -> str:
    values = (recalls.r1, recalls.r5, recalls.r10, recalls.mean)
    return f"{name:24}" + "".join(f"{format_percent(value):>7}" for value in values)
