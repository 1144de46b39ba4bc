"""Stand-in parts, so that these tests ask nothing of the rooms above config/."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import pytest

from cn_clip.config.load import build, merge
from cn_clip.config.schema import TrainConfig, WeightedPart, parts
from cn_clip.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Pairs:
    path: str


@dataclass(frozen=True, kw_only=True)
class Mixed:
    sources: tuple[WeightedPart, ...] = parts("pairs")
    names: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Augment:
    strength: float = 0.5


@dataclass(frozen=True, kw_only=True)
class Nothing:
    pass


@dataclass(frozen=True, kw_only=True)
class Loss:
    gather: bool = True
    gradient: Literal["exact", "reference"] = "exact"
    smoothing: float = 0.0


OPTIONS = {
    ("pairs", "lmdb_pairs"): Pairs,
    ("pairs", "mixed"): Mixed,
    ("augment", "none"): Nothing,
    ("augment", "autoaugment"): Augment,
    ("pair_loss", "contrastive"): Loss,
}


def resolve(kind: str, name: str) -> type:
    if (kind, name) not in OPTIONS:
        raise ConfigError(f"there is no {kind} called {name}")
    return OPTIONS[kind, name]


@pytest.fixture
def build_config() -> Callable[..., TrainConfig]:
    def built(settings: dict | None = None, overrides: list | None = None) -> TrainConfig:
        return build(TrainConfig, merge(settings or {}, overrides or []), resolve)

    return built
