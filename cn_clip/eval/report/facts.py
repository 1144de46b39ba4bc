"""What the other commands left behind, read for the report: scores, zero-shot result, stage times, training curve."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cn_clip.errors import DataError
from cn_clip.eval.jsonl import complain

_TOP1 = re.compile(r"zeroshot-top1:\s*([0-9.eE+-]+)")
Curves = dict[str, list[tuple[int, float]]]
"""(step, value) points of each quantity, in order of step."""


@dataclass(frozen=True)
class Recalls:
    """Shares of queries answered rightly, 0 to 1."""

    r1: float
    r5: float
    r10: float

    @property
    def mean(self) -> float:
        return (self.r1 + self.r5 + self.r10) / 3


def read_recalls(path: Path) -> Recalls:
    """Recalls of a JSON that evaluation.py wrote."""
    score = _read_json(path)
    try:
        if not score["success"]:
            raise DataError(f"{path} reports a failed evaluation ({score['errorMsg']}): mend that first")
        parts = score["scoreJson"]
        return Recalls(*(float(parts[name]) / 100 for name in ("r1", "r5", "r10")))
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{path} is no score file of evaluation.py: {error} is missing or wrong") from error


def read_zeroshot(path: Path) -> float:
    """Share of pictures classified rightly, 0 to 1, from what zeroshot_evaluation.py printed."""
    found = _TOP1.findall(_read_text(path))
    if not found:
        raise DataError(f"{path} has no line `zeroshot-top1: ...`: give the output of zeroshot_evaluation.py")
    return float(found[-1])


def read_stages(path: Path) -> dict[str, float]:
    """Seconds of each stage: from a folder of files that end in `done SECONDS` (oldest first), or a JSON object."""
    if not path.is_dir():
        try:
            return {str(name): float(seconds) for name, seconds in _read_json(path).items()}
        except (AttributeError, TypeError, ValueError) as error:
            raise DataError(f"{path} should be a JSON object of stage names and seconds") from error
    stages = {}
    for file in sorted(path.iterdir(), key=lambda file: file.stat().st_mtime_ns):
        done = re.search(r"\bdone ([0-9.]+)\s*$", _read_text(file))
        if done:
            stages[file.name] = float(done[1])
    return stages


def read_curves(run_folder: Path) -> Curves:
    """Numbers of `metrics.jsonl` by `kind/name`, for example `train/loss`."""
    path = run_folder / "metrics.jsonl"
    curves: Curves = defaultdict(list)
    lines = _read_text(path).splitlines()
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
        except ValueError:
            if number == len(lines):  # a run that was killed, or still writes
                break
            complain(path, number, "not a JSON object")
        if not isinstance(row, dict) or "kind" not in row or "step" not in row:
            complain(path, number, "kind or step is missing")
        for name, value in row.items():
            if name not in ("kind", "step", "epoch") and isinstance(value, int | float):
                curves[f"{row['kind']}/{name}"].append((int(row["step"]), float(value)))
    return dict(curves)


def _read_json(path: Path) -> Any:  # Any: a parsed JSON value; callers check it
    try:
        return json.loads(_read_text(path))
    except ValueError as error:
        raise DataError(f"{path} is not JSON: {error}") from error


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read {path} ({error}): check the path") from error
