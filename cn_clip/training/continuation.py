"""Whether a run that goes on from a checkpoint meets the pairs that would have followed there."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from cn_clip.config.load import lay_over

DECIDE_PAIRS = ("run.seed", "data.train", "data.sampler", "data.epoch_end")
"""Settings that the order of pairs is a function of, beside the global batch."""
GLOBAL_BATCH = "global batch"


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


def stage_changes(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """How the stages of `now` are other ones than those of `then`: how many, their names, their lengths."""
    if "settings" not in then:
        return []
    before, after = stages_in(then), stages_in(now)
    counts = [f"{len(before)} stages -> {len(after)}"] if len(before) != len(after) else []
    return counts + [
        f"stages[{number}]: {_described(number, one)} -> {_described(number, other)}"
        for number, (one, other) in enumerate(zip(before, after, strict=False))
        if _described(number, one) != _described(number, other)
    ]


def stages_in(run: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """What each stage of a run says, as its settings hold it; none of a run without stages."""
    return list(run.get("settings", {}).get("stages") or ())


def length_of(own: Mapping[str, Any]) -> str:
    """Of a stage, as it says it."""
    return f"{own['steps']} steps" if own.get("steps") is not None else f"{own.get('epochs')} epochs"


def _described(number: int, own: Mapping[str, Any]) -> str:
    return f"{own.get('name', f'stage {number + 1}')} of {length_of(own)}"


def _facts(run: Mapping[str, Any], is_stream: bool) -> Iterator[tuple[str, object]]:
    settings, world_size, stages = run["settings"], run["world_size"], stages_in(run)
    of_run = dict(_facts_of(settings, world_size, is_stream))
    if not stages:
        yield from of_run.items()
        return
    yield from ((name, value) for name, value in of_run.items() if name != GLOBAL_BATCH)
    for number, own in enumerate(stages):
        of_stage = _facts_of(lay_over(settings, own), world_size, is_stream)
        # each stage has its own batch, and of the rest what it says itself
        for name, value in of_stage:
            if name == GLOBAL_BATCH or of_run.get(name) != value:
                yield f"stages[{number}] {name}", value


def _facts_of(
    settings: Mapping[str, Any], world_size: int, is_stream: bool
) -> Iterator[tuple[str, object]]:  # Any: plain settings
    for path in DECIDE_PAIRS:
        yield from _leaves(path, _at(settings, path))
    batch_size, accumulate = _at(settings, "train.batch_size"), _at(settings, "train.accumulate")
    yield GLOBAL_BATCH, batch_size * accumulate * world_size
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
