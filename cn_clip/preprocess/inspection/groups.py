"""Rows that belong together, found by sorting.

Shapes: n rows.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


def number_values(*columns: NDArray[np.generic]) -> NDArray[np.int64]:
    """(n,) numbers from 0 that are equal where all columns are."""
    numbers = np.zeros(len(columns[0]), np.int64)
    for column in columns:
        values, places = np.unique(column, return_inverse=True)
        numbers = np.unique(numbers * len(values) + places, return_inverse=True)[1].reshape(-1)
    return numbers


def connect(num_rows: int, parts: Iterable[NDArray[np.int64]]) -> NDArray[np.int64]:
    """(n,) numbers that are equal where a chain of pairs leads from row to row; the parts are (p, 2) pairs each."""
    labels = np.arange(num_rows)
    for pairs in parts:
        labels = _joined(labels, pairs[labels[pairs[:, 0]] != labels[pairs[:, 1]]])
    return number_values(labels)


def _joined(labels: NDArray[np.int64], pairs: NDArray[np.int64]) -> NDArray[np.int64]:
    """(n,) lowest row of each chain, where it was that of the chains without these pairs."""
    while len(pairs):
        before = labels
        lowest = np.minimum(labels[pairs[:, 0]], labels[pairs[:, 1]])
        labels = labels.copy()
        for side in (0, 1):
            # the label of the label too, so that long chains close in few rounds
            np.minimum.at(labels, before[pairs[:, side]], lowest)
            np.minimum.at(labels, pairs[:, side], lowest)
        labels = labels[labels]
        if np.array_equal(labels, before):
            break
    return labels


@dataclass(frozen=True)
class Groups:
    """Rows by number; a group is two rows or more."""

    numbers: NDArray[np.int64]
    """(n,) which rows belong together."""
    sizes: NDArray[np.int64]
    """Rows of each number."""

    @classmethod
    def of(cls, numbers: NDArray[np.int64]) -> Groups:
        return cls(numbers, np.bincount(numbers))

    @property
    def num_groups(self) -> int:
        return int((self.sizes > 1).sum())

    @property
    def num_members(self) -> int:
        return int(self.sizes[self.sizes > 1].sum())

    @property
    def num_extra(self) -> int:
        """Rows that would go if each group kept one."""
        return self.num_members - self.num_groups

    def largest(self, count: int) -> list[NDArray[np.int64]]:
        """Rows of the largest groups, largest first; among equals, that which begins first."""
        grouped = np.flatnonzero(self.sizes[self.numbers] > 1)
        order = grouped[np.argsort(self.numbers[grouped], kind="stable")]
        parts = np.split(order, np.flatnonzero(np.diff(self.numbers[order])) + 1) if len(order) else []
        parts.sort(key=lambda rows: (-len(rows), int(rows[0])))
        return parts[:count]
