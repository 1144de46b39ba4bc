"""Rooms of a run used for another end: what they would log of themselves is not said."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def warnings_only() -> Iterator[None]:
    """Without the lines that a run logs as it goes; warnings stay."""
    root = logging.getLogger()
    before = root.level
    root.setLevel(logging.WARNING)
    try:
        yield
    finally:
        root.setLevel(before)
