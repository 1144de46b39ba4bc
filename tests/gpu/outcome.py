"""What a check of `tests/gpu.sh` found: held, did not hold, or could not be looked at here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Verdict = Literal["PASS", "FAIL", "SKIP"]


@dataclass(frozen=True)
class Outcome:
    check: str
    verdict: Verdict
    says: str
    """One sentence: the numbers, or the reason."""
    table: Sequence[Sequence[str]] = ()
    """Rows for the report, the first of them the heads."""


def passes(check: str, holds: bool, says: str, table: Sequence[Sequence[str]] = ()) -> Outcome:
    """PASS where it holds, else FAIL."""
    return Outcome(check, "PASS" if holds else "FAIL", says, table)


def skips(check: str, reason: str) -> Outcome:
    """Not looked at, and why."""
    return Outcome(check, "SKIP", reason)
