"""Which validation number decides about `best.pt`, and when it is the best."""

from __future__ import annotations

import math
from collections.abc import Mapping

from cn_clip.config.schema import TrainConfig
from cn_clip.errors import ConfigError
from cn_clip.training.validation import number_names

SMALLER_IS_BETTER = ("loss", "rank")
"""Ends of the names of numbers that are best when smallest (`mean_rank`, `median_rank`); others are when largest."""


def better(name: str, numbers: Mapping[str, float], best: float | None) -> float | None:
    """The number of this name where it is better than the best so far, else None; ConfigError where there is none."""
    if name not in numbers:
        raise ConfigError(
            f"checkpoint.best is {name}, which no validation gives; choose from {', '.join(sorted(numbers))}"
        )
    value = numbers[name]
    sign = -1 if name.endswith(SMALLER_IS_BETTER) else 1
    if not math.isfinite(value) or (best is not None and sign * value <= sign * best):
        return None
    return value


def check_best(config: TrainConfig) -> None:
    """ConfigError where `checkpoint.best` names a number that no validation of this run could give."""
    name, sets = config.checkpoint.best, config.data.valid_sets
    if name is None:
        return
    validates = config.validate.every_steps is not None or config.validate.every_epochs is not None
    if not validates or (config.data.valid is None and not sets):
        raise ConfigError(
            f"checkpoint.best is {name}, but nothing is validated: set data.valid and validate.every_epochs, or leave it out"
        )
    of_set, slash, _ = name.rpartition("/")
    number = name[len(of_set) + len(slash) :]
    if number not in number_names(config.validate):
        raise ConfigError(
            f"checkpoint.best is {name}, but no validation gives {number!r}; choose from {', '.join(number_names(config.validate))}"
        )
    if slash and of_set not in sets:
        raise ConfigError(f"checkpoint.best is {name}, but data.valid_sets has {', '.join(sets) or 'no set'}")
    if not slash and config.data.valid is None:
        raise ConfigError(
            f"checkpoint.best is {name}, but data.valid is not set: say which set, as {next(iter(sets))}/{name}"
        )
