"""What a check found: one sentence, its numbers, a verdict, and what to do."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

Verdict = Literal["ok", "slow", "wrong"]
"""`slow` costs time, `wrong` costs the run; both come with a next step."""
Number = float | int | str | bool | None


NAME_WIDTH, MARK_WIDTH = len("exactness"), len("WRONG")


@dataclass(frozen=True, kw_only=True)
class Finding:
    check: str
    """Which check says so, for example `memory`."""
    says: str
    """One sentence."""
    verdict: Verdict = "ok"
    numbers: Mapping[str, Number] = field(default_factory=dict)
    """What the sentence rests on; units end the names."""
    next_step: str = ""
    """What to do about it; empty when all is well."""

    def __post_init__(self) -> None:
        assert self.verdict == "ok" or self.next_step, (
            f"{self.check}: a {self.verdict} finding needs a next step"
        )


def text_of(finding: Finding) -> str:
    """The finding as a person reads it: check, verdict, sentence, and below it the next step."""
    mark = {"ok": "ok", "slow": "SLOW", "wrong": "WRONG"}[finding.verdict]
    text = f"{finding.check:<{NAME_WIDTH}} {mark:<{MARK_WIDTH}} {finding.says}"
    if finding.next_step:
        text += f"\n{'':<{NAME_WIDTH + MARK_WIDTH + 2}}-> {finding.next_step}"
    return text


def in_bytes(count: float) -> str:
    """`12.3 GiB`: with the unit that leaves one to four digits before the point."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(count) < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def rounded(rate: float) -> str:
    """Three digits, or whole numbers from 100 on."""
    return f"{rate:,.0f}" if rate >= 100 else f"{rate:.3g}"
