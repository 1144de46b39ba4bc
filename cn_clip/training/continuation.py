"""Whether a run that goes on from a checkpoint meets the pairs that would have followed there."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

DECIDE_PAIRS = ("run.seed", "data.train", "data.sampler", "data.epoch_end")
"""Settings that the order of pairs is a function of, beside the global batch."""


def differences(then: Mapping[str, Any], now: Mapping[str, Any], *, is_stream: bool) -> list[str]:
    """What of `now` gives other pairs than `then`, each as `name: old -> new`.

    Both hold `settings` and `world_size` of a run, as a checkpoint keeps them; of an older one without them nothing is said.
    A stream's order depends on the number of processes that read it, too.
    """
    if "settings" not in then or "world_size" not in then:
        return []
    before, after = dict(_facts(then, is_stream)), dict(_facts(now, is_stream))
    return [
        f"{name}: {before.get(name)} -> {after.get(name)}"
        for name in dict.fromkeys([*before, *after])
        if before.get(name) != after.get(name)
    ]


def _facts(run: Mapping[str, Any], is_stream: bool) -> Iterator[tuple[str, object]]:
    settings, world_size = run["settings"], run["world_size"]
    for path in DECIDE_PAIRS:
        yield from _leaves(path, _at(settings, path))
    batch_size, accumulate = _at(settings, "train.batch_size"), _at(settings, "train.accumulate")
    yield "global batch", batch_size * accumulate * world_size
    if is_stream:
        yield "processes", world_size
        yield "data.num_workers", _at(settings, "data.num_workers")


def _at(settings: Mapping[str, Any], path: str) -> Any:  # Any: whatever a setting holds
    section, name = path.split(".")
    return settings.get(section, {}).get(name)


def _leaves(path: str, value: Any) -> Iterator[tuple[str, object]]:  # Any: as above
    if isinstance(value, Mapping):
        for name, inner in value.items():
            yield from _leaves(f"{path}.{name}", inner)
    else:
        yield path, value
