"""The numbers of a run, read back from its folder: curves, what was trained on, how long it took."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cn_clip.errors import DataError
from cn_clip.training.checkpoints.best import SMALLER_IS_BETTER
from cn_clip.training.row_file import read_rows
from cn_clip.training.run_dir import METRICS, SUSPECTS

Rows = Sequence[dict[str, Any]]
"""Plain JSON values by name."""


@dataclass(frozen=True)
class Curve:
    """A number over the steps."""

    steps: list[int]
    values: list[float]

    def best(self, name: str) -> tuple[float, int]:
        """(value, step) of the best one: the smallest where the name says that smaller is better."""
        choose = min if name.endswith(SMALLER_IS_BETTER) else max
        return choose(
            zip(self.values, self.steps, strict=True),
            key=lambda point: (point[0], point[1] if choose is min else -point[1]),
        )

    @property
    def last(self) -> tuple[float, int]:
        return self.values[-1], self.steps[-1]

    def thinned(self, num: int) -> Curve:
        """At most so many points, each the mean of its neighbours."""
        size = -(-len(self.steps) // num)
        starts = range(0, len(self.steps), size)
        return Curve(
            [self.steps[min(start + size, len(self.steps)) - 1] for start in starts],
            [statistics.fmean(self.values[start : start + size]) for start in starts],
        )


class RunNumbers:
    """What `metrics.jsonl` and `suspects.jsonl` of a run say."""

    def __init__(self, folder: Path) -> None:
        """DataError for a folder without a run."""
        if not (folder / METRICS).is_file():
            raise DataError(
                f"{folder} has no {METRICS}: give the folder of a run, the one with resolved.yaml in it"
            )
        rows = read_rows(folder / METRICS)
        of_kind: dict[str, list[dict[str, Any]]] = defaultdict(list)  # Any: JSON values
        for row in rows:
            of_kind[row["kind"]].append(row)
        self.plans: Rows = of_kind["plan"]
        self.skipped: Rows = of_kind["skipped"]
        self.suspects: Rows = read_rows(folder / SUSPECTS)
        self.last_step = max((row["step"] for row in rows), default=0)
        self.last_epoch = max((row["epoch"] for row in rows), default=0)
        self._curves = _curves([*of_kind["train"], *of_kind["valid"]])

    @property
    def curves(self) -> dict[str, Curve]:
        """By `kind/name`, for example `train/loss` and `valid/muge/mean_recall`; only those with a point."""
        return self._curves

    def typical(self, name: str) -> float | None:
        """Median over the steps of a curve."""
        curve = self._curves.get(name)
        return None if curve is None else statistics.median(curve.values)

    def largest(self, name: str) -> float | None:
        curve = self._curves.get(name)
        return None if curve is None else max(curve.values)

    @property
    def valid_sets(self) -> list[str]:
        """Names of the validated sets, "" for `data.valid`, in order."""
        names = (name.removeprefix("valid/") for name in self._curves if name.startswith("valid/"))
        return list(dict.fromkeys(name.rpartition("/")[0] for name in names))

    def worst_suspects(self, num: int) -> Rows:
        """Suspected false negatives of the second half of the run with the largest margins, each couple once.

        A model that has learned little finds everything suspicious, so the first half does not count.
        """
        late = [row for row in self.suspects if row["step"] > self.last_step / 2] or list(self.suspects)
        couples: dict[frozenset[Any], dict[str, Any]] = {}  # Any: ids as they were written
        for row in sorted(late, key=lambda row: -row["margin"]):
            couples.setdefault(frozenset((row.get("pair_id"), row.get("other_pair_id"))), row)
        return list(couples.values())[:num]


def _curves(rows: Rows) -> dict[str, Curve]:
    curves: dict[str, Curve] = {}
    for row in rows:
        for name, value in row.items():
            if name not in ("kind", "step", "epoch") and isinstance(value, int | float):
                curve = curves.setdefault(f"{row['kind']}/{name}", Curve([], []))
                curve.steps.append(row["step"])
                curve.values.append(float(value))
    return curves
