"""What one pass keeps of every picture and caption: numpy rows, 53 bytes a picture and 37 a pair.

Pixels, texts and bytes are let go at once; what a report shows is read again from its place.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from cn_clip.preprocess.inspection.sources import Unusable

PICTURE = np.dtype(
    [
        ("image_id", "<i8"),
        ("digest_high", "<u8"),
        ("digest_low", "<u8"),
        ("near", "<u8"),
        ("place", "<i8"),
        ("width", "<u4"),
        ("height", "<u4"),
        ("num_bytes", "<u4"),
        ("state", "u1"),
    ]
)
HAS_PIXELS, HAS_NEAR = 1, 2
"""Bits of a picture's state."""

PAIR = np.dtype(
    [
        ("image_id", "<i8"),
        ("text_id", "<i8"),
        ("caption_key", "<i8"),
        ("place", "<i8"),
        ("num_tokens", "<u4"),
        ("state", "u1"),
    ]
)
IS_PAIR, HAS_UNKNOWN, HAS_INVISIBLE, IS_STALE = 1, 2, 4, 8
"""Bits of a pair's state; a caption without picture ids has a row too, without IS_PAIR."""

MAX_FAULTS = 200
"""Kept in full; the rest are counted."""

Table = NDArray[np.void]


@dataclass
class FaultList:
    """Faulty rows, the first ones in full."""

    count: int = 0
    first: list[Unusable] = field(default_factory=list)

    def add(self, row: Unusable) -> None:
        self.count += 1
        if len(self.first) < MAX_FAULTS:
            self.first.append(row)

    def extend(self, others: FaultList) -> None:
        self.count += others.count
        self.first += others.first[: MAX_FAULTS - len(self.first)]


@dataclass
class PictureRows:
    """Of a stretch, or of all."""

    table: Table
    undecodable: FaultList = field(default_factory=FaultList)
    unreadable: FaultList = field(default_factory=FaultList)
    flawed: FaultList = field(default_factory=FaultList)
    formats: Counter[str] = field(default_factory=Counter)
    modes: Counter[str] = field(default_factory=Counter)
    num_repeated_rows: int = 0
    """That give a picture again, byte for byte."""
    cpu_seconds: float = 0.0


@dataclass
class CaptionRows:
    """Of a stretch, or of all."""

    table: Table
    bad: FaultList = field(default_factory=FaultList)
    unknown: Counter[str] = field(default_factory=Counter)
    invisible: Counter[str] = field(default_factory=Counter)
    examples: dict[str, int] = field(default_factory=dict)
    """Odd character -> place of the first caption that has it."""
    has_tokens: bool = False
    """The split has tokens cached that this tokenizer could have made."""
