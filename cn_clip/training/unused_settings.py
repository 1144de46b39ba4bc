"""Settings that were given and do nothing, since another one that they need is off: one table, one sentence each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from cn_clip.config.schema import TrainConfig
from cn_clip.errors import ConfigError


@dataclass(frozen=True)
class Need:
    """What some settings of one section need."""

    section: str
    settings: tuple[str, ...]
    needed: str
    """What to set, as a sentence has it."""
    is_met: Callable[[TrainConfig], bool]


def _optimizer_has(what: str) -> Callable[[TrainConfig], bool]:
    def has(config: TrainConfig) -> bool:
        if config.optim.type == "adamw":
            return True
        # seconds to import, and most runs need none of it
        from timm.optim import get_optimizer_info, list_optimizers

        if config.optim.type not in list_optimizers():
            return True  # another error is on its way
        info = get_optimizer_info(config.optim.type)
        return info.has_eps if what == "eps" else info.has_betas and info.num_betas == 2

    return has


def _distils(config: TrainConfig) -> bool:
    return config.distill.enabled


def _has_adapters(config: TrainConfig) -> bool:
    return config.lora.image_rank > 0 or config.lora.text_rank > 0


NEEDS = (
    Need(
        "parallel",
        ("reshard", "shard_ranks", "sync"),
        "parallel.engine=fsdp",
        lambda config: config.parallel.engine == "fsdp",
    ),
    Need("distill", ("teacher", "weight", "type"), "distill.enabled=true (--distillation)", _distils),
    Need(
        "distill",
        ("width",),
        "distill.enabled=true and distill.type=features",
        lambda config: _distils(config) and config.distill.type == "features",
    ),
    Need(
        "optim",
        ("cooldown_steps",),
        "optim.schedule=cooldown",
        lambda config: config.optim.schedule == "cooldown",
    ),
    Need(
        "optim",
        ("end_lr",),
        "optim.schedule=cosine or cooldown",
        lambda config: config.optim.schedule != "constant",
    ),
    Need("optim", ("eps",), "an optim.type that has one", _optimizer_has("eps")),
    Need("optim", ("beta1", "beta2"), "an optim.type that has two of them", _optimizer_has("betas")),
    Need(
        "model",
        ("mask_schedule", "unmasked_share"),
        "model.mask_ratio above 0 (--mask-ratio)",
        lambda config: config.model.mask_ratio > 0,
    ),
    Need("lora", ("alpha", "dropout"), "lora.image_rank or lora.text_rank above 0", _has_adapters),
    Need("ema", ("warmup",), "ema.decay", lambda config: config.ema.decay is not None),
    Need(
        "checkpoint",
        (
            "every_epochs",
            "every_steps",
            "every_minutes",
            "keep_last",
            "best",
            "asynchronous",
            "safetensors",
            "sharded",
        ),
        "checkpoint.enabled=true (no --logs None)",
        lambda config: config.checkpoint.enabled,
    ),
    Need(
        "validate",
        ("recall_at", "max_pairs"),
        "validate.recall=true",
        lambda config: config.validate.recall,
    ),
    Need(
        "data",
        ("max_bad_share",),
        "data.bad_pairs=skip",
        lambda config: config.data.bad_pairs == "skip",
    ),
)


def unused_settings(stages: Sequence[TrainConfig]) -> list[str]:
    """A sentence for each setting that was changed and does nothing in any stage of a run."""
    found = []
    for need in NEEDS:
        for name in need.settings:
            changing = [config for config in stages if _is_changed(config, need.section, name)]
            if changing and not any(map(need.is_met, changing)):
                value = _value(changing[0], need.section, name)
                found.append(f"{need.section}.{name} is {value}, which does nothing without {need.needed}")
    return found


def check_engine_settings(config: TrainConfig) -> None:
    """ConfigError for a whole file of settings that nobody would read."""
    parallel = config.parallel
    if parallel.deepspeed_config is not None and not parallel.engine.startswith("zero"):
        raise ConfigError(
            f"parallel.deepspeed_config is {parallel.deepspeed_config}, but parallel.engine={parallel.engine} is not DeepSpeed's: "
            "set parallel.engine to zero1, zero2 or zero3, or leave the file out"
        )


def _is_changed(config: TrainConfig, section: str, name: str) -> bool:
    return _value(config, section, name) != _value(TrainConfig(), section, name)


def _value(config: TrainConfig, section: str, name: str) -> Any:  # Any: whatever the setting holds
    return getattr(getattr(config, section), name)
